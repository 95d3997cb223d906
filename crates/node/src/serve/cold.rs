//! The bucket of the configuration, with what the environment says of it.

use std::sync::Arc;

use anyhow::{Context, Result};
use tokio::runtime::Handle;

use crate::cold::{self, Cold, Credentials, Location, Options};
use crate::config::Config;

/// What other programs of AWS's read too.
const VARIABLES: &str = "AWS_";

/// `None`: the configuration names no bucket. Asks nobody anything yet.
pub fn open(config: &Config) -> Result<Option<Arc<Cold>>> {
    let Some(url) = &config.cold else { return Ok(None) };
    let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
        Some((name.into_string().ok()?, value.into_string().ok()?))
    };
    let environment: Vec<(String, String)> =
        std::env::vars_os().filter_map(text).filter(|(name, _)| name.starts_with(VARIABLES)).collect();
    let variable = |name: &str| environment.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone());
    let options = Options {
        location: Location::parse(url).map_err(anyhow::Error::msg)?,
        endpoint: config
            .cold_endpoint
            .clone()
            .or_else(|| variable("AWS_ENDPOINT_URL_S3").or_else(|| variable("AWS_ENDPOINT_URL"))),
        region: config.cold_region.clone(),
        credentials: config.cold_credentials_file.as_deref().map(Credentials::read).transpose()?,
        authorities: config.upstream_ca_file.as_deref().map(cold::read_authorities).transpose()?,
        environment,
    };
    let opened = Cold::open(&options, &config.data_dir, !config.cold_read_only, Handle::current());
    opened.map(Some).with_context(|| format!("cannot use the bucket {url}"))
}
