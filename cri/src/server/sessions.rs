//! The engine as the streaming server sees it.

use std::sync::Arc;

use engine::api::{ContainerState, ContainerView, Session, Stream};
use engine::{Engine, Error, Kind};
use futures_util::future::BoxFuture;

use crate::streaming;

/// Opens sessions in the engine's containers.
#[derive(Clone, Debug)]
pub struct Sessions(pub Arc<Engine>);

impl streaming::Sessions for Sessions {
    fn exec(&self, r: streaming::ExecRequest) -> BoxFuture<'_, Result<Session, Error>> {
        Box::pin(
            async move { self.0.exec(&r.container, &r.command, r.tty, r.stdin, r.stdout, r.stderr).await },
        )
    }

    fn attach(&self, r: streaming::AttachRequest) -> BoxFuture<'_, Result<Session, Error>> {
        Box::pin(async move { self.0.attach(&r.container, r.tty, r.stdin, r.stdout, r.stderr).await })
    }

    fn port_forward(&self, pod: String, port: u16) -> BoxFuture<'_, Result<Box<dyn Stream>, Error>> {
        Box::pin(async move { self.0.port_forward(&pod, port).await })
    }
}

/// The container, which must be running.
pub fn running(engine: &Engine, id: &str) -> Result<Arc<ContainerView>, Error> {
    if id.is_empty() {
        return Err(Error::invalid("container_id", "must not be empty"));
    }
    let container = engine.container(id)?;
    if container.state != ContainerState::Running {
        return Err(Error::new(
            Kind::FailedPrecondition,
            format!("container {} is not running", container.id),
        ));
    }
    Ok(container)
}
