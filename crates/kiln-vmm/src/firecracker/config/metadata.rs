//! The metadata service that a guest can ask.

use std::borrow::Cow;
use std::net::Ipv4Addr;
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use super::request::{CONFIGURE, Request, Verb, request};
use crate::firecracker::version::Feature;

/// `PUT /mmds/config`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MmdsConfig {
    /// Interfaces on which the service answers.
    pub network_interfaces: Vec<String>,
    /// Protocol; the first one when unset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<MmdsVersion>,
    /// Address of the service; 169.254.169.254 when unset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ipv4_address: Option<Ipv4Addr>,
    /// Whether answers always have the form of another cloud's service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub imds_compat: Option<bool>,
}
request!(
    MmdsConfig,
    Put,
    "/mmds/config",
    needs | it | [(it.imds_compat.is_some(), Feature::ImdsCompat),]
);

/// Protocol of the metadata service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum MmdsVersion {
    /// Plain requests. Deprecated by Firecracker.
    V1,
    /// Requests with a session's token.
    V2,
}

/// `PUT /mmds`: the whole content.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Metadata(pub Value);
request!(Metadata, Put, "/mmds");

/// `PATCH /mmds`: a JSON merge patch.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(transparent)]
pub struct MetadataPatch(pub Value);
request!(MetadataPatch, Patch, "/mmds");
