//! Requests and limits as a manifest states them.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ResourceRequirements;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use plimsoll_core::pod::SpecResources;
use plimsoll_core::units::{Bytes, MilliCpu, QuantityError};

/// Parses requests and limits. Adds the field and the error of each invalid quantity to `problems`.
pub(super) fn stated(
    resources: Option<&ResourceRequirements>,
    problems: &mut Vec<(&'static str, QuantityError)>,
) -> SpecResources {
    fn read<T>(
        list: Option<&BTreeMap<String, Quantity>>,
        field: &'static str,
        parse: impl Fn(&str) -> Result<T, QuantityError>,
        problems: &mut Vec<(&'static str, QuantityError)>,
    ) -> Option<T> {
        let quantity = list?.get(field.rsplit('.').next()?)?;
        parse(&quantity.0).map_err(|error| problems.push((field, error))).ok()
    }
    let (requests, limits) = resources
        .map_or((None, None), |resources| (resources.requests.as_ref(), resources.limits.as_ref()));
    SpecResources {
        cpu_request: read(requests, "resources.requests.cpu", MilliCpu::from_quantity, problems),
        cpu_limit: read(limits, "resources.limits.cpu", MilliCpu::from_quantity, problems),
        memory_request: read(requests, "resources.requests.memory", Bytes::from_quantity, problems),
        memory_limit: read(limits, "resources.limits.memory", Bytes::from_quantity, problems),
    }
}
