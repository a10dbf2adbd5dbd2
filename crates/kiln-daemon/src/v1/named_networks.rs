//! Networks with names, which sandboxes share.

use axum::{Json, Router, extract::State, http::StatusCode, routing::get};
use kiln::{NewNetwork, Secret, Tunnel};
use kiln_api::{
    CreateNetwork, NamedNetwork, NetworkMember, NetworkPolicy, WireGuard, WireGuardRequest,
};

use super::{App, policy};
use crate::http::{
    error::ApiError,
    extract::{Body, Named},
};

pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/v1/networks", get(list).post(create))
        .route(
            "/v1/networks/{name}",
            get(inspect).put(update).delete(remove),
        )
}

async fn list(State(app): State<App>) -> Result<Json<Vec<NamedNetwork>>, ApiError> {
    let networks = app.host.networks().await?;
    Ok(Json(networks.into_iter().map(told).collect()))
}

async fn inspect(
    State(app): State<App>,
    Named(name): Named<String>,
) -> Result<Json<NamedNetwork>, ApiError> {
    Ok(Json(told(app.host.named_network(&name).await?)))
}

async fn create(
    State(app): State<App>,
    Body(request): Body<CreateNetwork>,
) -> Result<(StatusCode, Json<NamedNetwork>), ApiError> {
    let made = app.host.create_network(new_network(request)?).await?;
    Ok((StatusCode::CREATED, Json(told(made))))
}

async fn update(
    State(app): State<App>,
    Named(name): Named<String>,
    Body(request): Body<NetworkPolicy>,
) -> Result<Json<NamedNetwork>, ApiError> {
    let wanted = policy::spec(request);
    Ok(Json(told(
        app.host.update_named_network(&name, wanted).await?,
    )))
}

async fn remove(
    State(app): State<App>,
    Named(name): Named<String>,
) -> Result<StatusCode, ApiError> {
    app.host.remove_network(&name).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn new_network(request: CreateNetwork) -> Result<NewNetwork, ApiError> {
    Ok(NewNetwork {
        name: request.name,
        subnet: request.subnet,
        policy: policy::spec(request.policy),
        members_talk: request.members_talk,
        wireguard: request.wireguard.map(wireguard).transpose()?,
    })
}

fn wireguard(request: WireGuardRequest) -> Result<kiln::WireGuard, ApiError> {
    let tunnel = match (request.config, request.existing) {
        (Some(config), None) => Tunnel::Managed {
            interface: request.interface,
            config: Secret::new(config),
        },
        (None, Some(interface)) if request.interface.is_none() => Tunnel::Existing { interface },
        _ => {
            let message = "a tunnel is made of a config, or exists: give one of the two";
            return Err(kiln::Error::new(kiln::ErrorCode::InvalidWireGuard, message).into());
        }
    };
    Ok(kiln::WireGuard {
        tunnel,
        table: request.table,
        route_all: request.route_all.unwrap_or(true),
        fail_closed: request.fail_closed.unwrap_or(true),
    })
}

fn told(network: kiln::NamedNetwork) -> NamedNetwork {
    let member = |member: kiln::NetworkMember| NetworkMember {
        sandbox: member.sandbox,
        address: member.address.to_string(),
        interface: member.interface,
    };
    NamedNetwork {
        name: network.name,
        subnet: network.subnet,
        gateway: network.gateway.to_string(),
        policy: policy::told(network.policy),
        members_talk: network.members_talk,
        wireguard: network.wireguard.map(|tunnel| WireGuard {
            interface: tunnel.interface,
            managed: tunnel.managed,
            table: tunnel.table,
            route_all: tunnel.route_all,
            fail_closed: tunnel.fail_closed,
        }),
        interface: network.interface,
        members: network.members.into_iter().map(member).collect(),
        sandboxes: network.sandboxes,
        created_at_ms: network.created_at_ms,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a8_3_a_tunnel_is_made_or_exists_never_both() {
        let some = |text: &str| Some(text.to_owned());
        let request = |config, existing, interface| WireGuardRequest {
            config,
            existing,
            interface,
            ..WireGuardRequest::default()
        };
        let made = wireguard(request(some("x"), None, None)).expect("made");
        assert!(made.route_all && made.fail_closed, "the safe way, unasked");
        wireguard(request(None, some("wg0"), None)).expect("existing");
        for wrong in [
            request(None, None, None),
            request(some("x"), some("wg0"), None),
            request(None, some("wg0"), some("wg1")),
        ] {
            let refused = wireguard(wrong).expect_err("refused");
            assert_eq!(refused.report.code, "INVALID_WIREGUARD_CONFIG");
        }
    }
}
