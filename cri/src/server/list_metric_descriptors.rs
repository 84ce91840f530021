//! ListMetricDescriptors: the list never changes.

use crate::metrics;
use crate::proto::{ListMetricDescriptorsRequest, ListMetricDescriptorsResponse};

pub(super) fn handle(_: &ListMetricDescriptorsRequest) -> ListMetricDescriptorsResponse {
    ListMetricDescriptorsResponse { descriptors: metrics::descriptors() }
}
