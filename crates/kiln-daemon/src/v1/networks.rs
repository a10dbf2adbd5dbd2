//! Networks of sandboxes.

use axum::{Json, extract::State};
use kiln::{NetworkInfo, NetworkSpec, Proof};
use kiln_api::{Network, NetworkMode, NetworkPolicy, NetworkProof, NetworkRequest, ProofOutcome};

use super::{App, policy};
use crate::http::{
    error::ApiError,
    extract::{Body, Named},
};

pub(super) async fn inspect(
    State(app): State<App>,
    Named(key): Named<String>,
) -> Result<Json<Network>, ApiError> {
    Ok(Json(network(app.host.network(&key).await?)))
}

pub(super) async fn update(
    State(app): State<App>,
    Named(key): Named<String>,
    Body(request): Body<NetworkPolicy>,
) -> Result<Json<Network>, ApiError> {
    let wanted = policy::spec(request);
    Ok(Json(network(app.host.update_network(&key, wanted).await?)))
}

pub(super) async fn verify(
    State(app): State<App>,
    Named(key): Named<String>,
) -> Result<Json<Vec<NetworkProof>>, ApiError> {
    let proofs = app.host.verify_network(&key).await?;
    Ok(Json(proofs.into_iter().map(proof).collect()))
}

pub(super) fn spec(request: NetworkRequest) -> NetworkSpec {
    NetworkSpec {
        mode: match request.mode.unwrap_or_default() {
            NetworkMode::Auto => kiln::NetworkMode::Auto,
            NetworkMode::None => kiln::NetworkMode::None,
            NetworkMode::Default => kiln::NetworkMode::Default,
            NetworkMode::User => kiln::NetworkMode::User,
        },
        name: request.name,
        address: request.address,
        policy: policy::spec(request.policy),
    }
}

fn network(info: NetworkInfo) -> Network {
    let text = |address: Option<std::net::Ipv4Addr>| address.map(|address| address.to_string());
    Network {
        mode: match info.mode {
            kiln::NetworkMode::Auto => NetworkMode::Auto,
            kiln::NetworkMode::None => NetworkMode::None,
            kiln::NetworkMode::Default => NetworkMode::Default,
            kiln::NetworkMode::User => NetworkMode::User,
        },
        name: info.name,
        policy: policy::told(info.policy),
        connected: info.connected,
        interface: info.interface,
        address: text(info.address),
        guest_address: text(info.guest_address),
        gateway: text(info.gateway),
        mtu: info.mtu,
    }
}

fn proof(proof: Proof) -> NetworkProof {
    NetworkProof {
        about: proof.about,
        from: proof.from,
        question: proof.question,
        allowed: proof.allowed,
        outcome: match proof.outcome {
            kiln::ProofOutcome::Holds => ProofOutcome::Holds,
            kiln::ProofOutcome::Broken => ProofOutcome::Broken,
            kiln::ProofOutcome::Unproven => ProofOutcome::Unproven,
        },
    }
}
