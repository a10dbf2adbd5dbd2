//! A policy, as typed.

use clap::{Args, ValueEnum};
use kiln_api::{Bandwidth, NetworkPolicy, PolicyMode, RuleAction};

use super::rule::Rule;

/// Which kind of policy.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum Kind {
    /// The public internet.
    AllowAll,
    /// Nothing, not even names.
    DenyAll,
    /// Only what is allowed.
    Custom,
}

/// What a policy ends with.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum DefaultAction {
    /// Let it pass.
    Allow,
    /// Drop it.
    Deny,
}

/// A policy.
#[derive(Debug, Args)]
pub(super) struct PolicyArgs {
    /// What may be reached [default: custom where anything is allowed, else allow-all]
    #[arg(long, value_enum, value_name = "POLICY")]
    network_policy: Option<Kind>,
    /// Add a rule; of several, the first that matches decides: 'allow tcp 198.51.100.0/24 80,443',
    /// 'allow *.example.com', 'deny any'
    #[arg(long, value_name = "RULE")]
    rule: Vec<Rule>,
    /// What happens to what no rule matches [default: deny]
    #[arg(long, value_enum, value_name = "ACTION")]
    default_action: Option<DefaultAction>,
    /// Let "everywhere" include private networks
    #[arg(long)]
    private_networks: bool,
    /// Allow a name: example.com, or *.example.com for all below it
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    allow_domain: Vec<String>,
    /// Allow an IPv4 network
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    allow_cidr: Vec<String>,
    /// Deny an IPv4 network, whatever else is allowed
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    deny_cidr: Vec<String>,
    /// Have a port of the host lead to one of the guest
    #[arg(long, short, value_name = "[[ADDRESS:]HOST:]GUEST[/udp]")]
    publish: Vec<String>,
    /// Limit both directions, such as 50mbit, or each: DOWN/UP
    #[arg(long, value_name = "RATE[/RATE]")]
    bandwidth: Option<String>,
    /// Check the server name of web traffic against the allowed names
    #[arg(long)]
    verify_hosts: bool,
}

impl PolicyArgs {
    /// As it was typed: the daemon checks it, with every fault named.
    pub(super) fn policy(self) -> NetworkPolicy {
        NetworkPolicy {
            mode: self.network_policy.map(|kind| match kind {
                Kind::AllowAll => PolicyMode::AllowAll,
                Kind::DenyAll => PolicyMode::DenyAll,
                Kind::Custom => PolicyMode::Custom,
            }),
            private_networks: self.private_networks,
            rules: self.rule.into_iter().map(|rule| rule.0).collect(),
            allowed_domains: self.allow_domain,
            allowed_cidrs: self.allow_cidr,
            denied_cidrs: self.deny_cidr,
            default_action: self.default_action.map(|action| match action {
                DefaultAction::Allow => RuleAction::Allow,
                DefaultAction::Deny => RuleAction::Deny,
            }),
            publish: self.publish,
            bandwidth: self.bandwidth.map(bandwidth).unwrap_or_default(),
            verify_hosts: self.verify_hosts,
        }
    }
}

fn bandwidth(text: String) -> Bandwidth {
    let (download, upload) = match text.split_once('/') {
        Some((down, up)) => (down.to_owned(), up.to_owned()),
        None => (text.clone(), text),
    };
    Bandwidth {
        download: Some(download),
        upload: Some(upload),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bandwidth_is_for_both_directions_or_each() {
        let both = bandwidth("5mbit".to_owned());
        assert_eq!(
            (both.download.as_deref(), both.upload.as_deref()),
            (Some("5mbit"), Some("5mbit"))
        );
        let each = bandwidth("5mbit/1mbit".to_owned());
        assert_eq!(each.upload.as_deref(), Some("1mbit"));
    }
}
