//! Networks of sandboxes.

use axum::{Json, extract::State};
use kiln::{BandwidthSpec, NetworkInfo, NetworkSpec, PolicySpec, Proof};
use kiln_api::{
    Bandwidth, Network, NetworkMode, NetworkPolicy, NetworkProof, NetworkRequest, PolicyMode,
    ProofOutcome,
};

use super::App;
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
    let before = app.host.network(&key).await?.policy;
    let wanted = PolicySpec {
        // What this version of the contract cannot say stays as it is.
        private_networks: before.private_networks,
        ..policy_spec(request)
    };
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
        },
        policy: policy_spec(request.policy),
    }
}

fn policy_spec(policy: NetworkPolicy) -> PolicySpec {
    PolicySpec {
        mode: policy.mode.map(|mode| match mode {
            PolicyMode::AllowAll => kiln::PolicyMode::AllowAll,
            PolicyMode::DenyAll => kiln::PolicyMode::DenyAll,
            PolicyMode::Custom => kiln::PolicyMode::Custom,
        }),
        allowed_domains: policy.allowed_domains,
        allowed_cidrs: policy.allowed_cidrs,
        denied_cidrs: policy.denied_cidrs,
        publish: policy.publish,
        bandwidth: BandwidthSpec {
            download: policy.bandwidth.download,
            upload: policy.bandwidth.upload,
        },
        verify_hosts: policy.verify_hosts,
        ..PolicySpec::default()
    }
}

fn network(info: NetworkInfo) -> Network {
    let text = |address: Option<std::net::Ipv4Addr>| address.map(|address| address.to_string());
    Network {
        mode: match info.mode {
            kiln::NetworkMode::Auto => NetworkMode::Auto,
            kiln::NetworkMode::None => NetworkMode::None,
            kiln::NetworkMode::Default => NetworkMode::Default,
        },
        policy: policy(info.policy),
        connected: info.connected,
        interface: info.interface,
        address: text(info.address),
        guest_address: text(info.guest_address),
        gateway: text(info.gateway),
        mtu: info.mtu,
    }
}

fn policy(spec: PolicySpec) -> NetworkPolicy {
    NetworkPolicy {
        mode: spec.mode.map(|mode| match mode {
            kiln::PolicyMode::AllowAll => PolicyMode::AllowAll,
            kiln::PolicyMode::DenyAll => PolicyMode::DenyAll,
            kiln::PolicyMode::Custom => PolicyMode::Custom,
        }),
        allowed_domains: spec.allowed_domains,
        allowed_cidrs: spec.allowed_cidrs,
        denied_cidrs: spec.denied_cidrs,
        publish: spec.publish,
        bandwidth: Bandwidth {
            download: spec.bandwidth.download,
            upload: spec.bandwidth.upload,
        },
        verify_hosts: spec.verify_hosts,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_goes_through_unchanged() {
        let asked = NetworkPolicy {
            mode: Some(PolicyMode::Custom),
            allowed_domains: vec!["a.b".to_owned()],
            allowed_cidrs: vec!["1.1.1.0/24".to_owned()],
            denied_cidrs: vec!["1.1.1.1".to_owned()],
            publish: vec!["8080:80".to_owned()],
            bandwidth: Bandwidth {
                download: Some("1mbit".to_owned()),
                upload: Some("2mbit".to_owned()),
            },
            verify_hosts: true,
        };
        assert_eq!(policy(policy_spec(asked.clone())), asked);
    }
}
