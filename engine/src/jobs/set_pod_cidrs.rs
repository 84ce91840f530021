//! UpdateRuntimeConfig.

use std::sync::Arc;

use crate::engine::{blocking, network_error};
use crate::job::{Cx, Job};
use crate::{Engine, Error};

/// Tells the network which addresses this node's pods get.
#[derive(Clone, Debug)]
pub struct SetPodCidrs {
    /// One per family.
    pub cidrs: Vec<String>,
}

impl Job for SetPodCidrs {
    const NAME: &'static str = "UpdateRuntimeConfig";
    type Output = ();

    fn subject(&self) -> String {
        self.cidrs.join(",")
    }

    async fn run(self, engine: Arc<Engine>, cx: Cx) -> Result<(), Error> {
        let network = engine.network.clone();
        cx.step("set", blocking(move || network.set_pod_cidrs(&self.cidrs).map_err(network_error))).await
    }
}
