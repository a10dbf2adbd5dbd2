//! Network policies, between the contract's words and the library's.

use kiln::{BandwidthSpec, PolicySpec, PortSpec, RuleSpec};
use kiln_api::{
    Bandwidth, NetworkPolicy, NetworkRule, PolicyMode, RuleAction, RulePorts, RuleProtocol,
};

/// What was asked for.
pub(super) fn spec(policy: NetworkPolicy) -> PolicySpec {
    PolicySpec {
        mode: policy.mode.map(|mode| match mode {
            PolicyMode::AllowAll => kiln::PolicyMode::AllowAll,
            PolicyMode::DenyAll => kiln::PolicyMode::DenyAll,
            PolicyMode::Custom => kiln::PolicyMode::Custom,
        }),
        private_networks: policy.private_networks,
        rules: policy.rules.into_iter().map(rule_spec).collect(),
        allowed_domains: policy.allowed_domains,
        allowed_cidrs: policy.allowed_cidrs,
        denied_cidrs: policy.denied_cidrs,
        default_action: policy.default_action.map(action_spec),
        publish: policy.publish,
        bandwidth: BandwidthSpec {
            download: policy.bandwidth.download,
            upload: policy.bandwidth.upload,
        },
        verify_hosts: policy.verify_hosts,
    }
}

/// What is told.
pub(super) fn told(spec: PolicySpec) -> NetworkPolicy {
    NetworkPolicy {
        mode: spec.mode.map(|mode| match mode {
            kiln::PolicyMode::AllowAll => PolicyMode::AllowAll,
            kiln::PolicyMode::DenyAll => PolicyMode::DenyAll,
            kiln::PolicyMode::Custom => PolicyMode::Custom,
        }),
        private_networks: spec.private_networks,
        rules: spec.rules.into_iter().map(rule).collect(),
        allowed_domains: spec.allowed_domains,
        allowed_cidrs: spec.allowed_cidrs,
        denied_cidrs: spec.denied_cidrs,
        default_action: spec.default_action.map(action),
        publish: spec.publish,
        bandwidth: Bandwidth {
            download: spec.bandwidth.download,
            upload: spec.bandwidth.upload,
        },
        verify_hosts: spec.verify_hosts,
    }
}

fn rule_spec(rule: NetworkRule) -> RuleSpec {
    RuleSpec {
        action: action_spec(rule.action),
        domains: rule.domains,
        cidrs: rule.cidrs,
        protocol: match rule.protocol {
            RuleProtocol::All => kiln::Protocol::All,
            RuleProtocol::Tcp => kiln::Protocol::Tcp,
            RuleProtocol::Udp => kiln::Protocol::Udp,
            RuleProtocol::Icmp => kiln::Protocol::Icmp,
        },
        ports: rule.ports.into_iter().map(ports_spec).collect(),
        comment: rule.comment,
    }
}

fn rule(spec: RuleSpec) -> NetworkRule {
    NetworkRule {
        action: action(spec.action),
        domains: spec.domains,
        cidrs: spec.cidrs,
        protocol: match spec.protocol {
            kiln::Protocol::All => RuleProtocol::All,
            kiln::Protocol::Tcp => RuleProtocol::Tcp,
            kiln::Protocol::Udp => RuleProtocol::Udp,
            kiln::Protocol::Icmp => RuleProtocol::Icmp,
        },
        ports: spec.ports.into_iter().map(ports).collect(),
        comment: spec.comment,
    }
}

fn action_spec(action: RuleAction) -> kiln::Action {
    match action {
        RuleAction::Allow => kiln::Action::Allow,
        RuleAction::Deny => kiln::Action::Deny,
    }
}

fn action(action: kiln::Action) -> RuleAction {
    match action {
        kiln::Action::Allow => RuleAction::Allow,
        kiln::Action::Deny => RuleAction::Deny,
    }
}

fn ports_spec(ports: RulePorts) -> PortSpec {
    match ports {
        RulePorts::Number(number) => PortSpec::Number(number),
        RulePorts::Text(text) => PortSpec::Text(text),
    }
}

fn ports(spec: PortSpec) -> RulePorts {
    match spec {
        PortSpec::Number(number) => RulePorts::Number(number),
        PortSpec::Text(text) => RulePorts::Text(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever is left out on the way is a rule that is not applied.
    #[test]
    fn a7_1_a_policy_goes_through_unchanged_with_its_rules_in_order() {
        let text = r#"{"mode":"custom","private_networks":true,
            "rules":[
                {"action":"deny","cidrs":["10.0.0.0/8"],"protocol":"all","comment":"inside"},
                {"action":"allow","domains":["*.a.b"],"protocol":"tcp","ports":[80,"400-500"]},
                {"action":"allow","protocol":"icmp"}],
            "allowed_domains":["a.b"],"allowed_cidrs":["1.1.1.0/24"],"denied_cidrs":["1.1.1.1"],
            "default_action":"allow","publish":["8080:80"],
            "bandwidth":{"download":"1mbit","upload":"2mbit"},"verify_hosts":true}"#;
        let asked: NetworkPolicy = serde_json::from_str(text).unwrap();
        let spec = spec(asked.clone());
        // The library reads the same text the same way, so nothing changed its meaning.
        assert_eq!(spec, serde_json::from_str(text).unwrap());
        assert_eq!(told(spec), asked);
    }
}
