use super::{Failure, Payload, failure};

pub(super) fn build(payload: &Payload) -> Result<(), Failure> {
    Err(failure(payload.drv_name.clone()))
}
