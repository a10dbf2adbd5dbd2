//! Which chains of custom rules the table has, and how many networks of this process use each.

use std::collections::HashMap;

use crate::ruleset::Change;
use crate::ruleset::custom::CustomChain;

/// Who uses what. Locked for as long as a transaction that begins or ends a use takes, so that no
/// chain goes that another network is about to use.
#[derive(Debug, Default)]
pub(crate) struct Chains {
    used: HashMap<String, Use>,
}

#[derive(Debug)]
struct Use {
    networks: usize,
    /// Somebody may have flushed the table since.
    in_table: bool,
}

impl Chains {
    /// The changes that come first when a network begins to use a chain.
    pub(crate) fn before(&self, to: Option<&CustomChain>) -> Vec<Change> {
        let in_table =
            |chain: &CustomChain| self.used.get(chain.name()).is_some_and(|u| u.in_table);
        match to {
            Some(chain) if !in_table(chain) => chain.add(),
            _ => Vec::new(),
        }
    }

    /// The changes that come last when a network goes from one chain to another: the first is
    /// removed with its last user.
    pub(crate) fn after(
        &self,
        from: Option<&CustomChain>,
        to: Option<&CustomChain>,
    ) -> Vec<Change> {
        let is_last =
            |chain: &CustomChain| self.used.get(chain.name()).is_none_or(|u| u.networks <= 1);
        match from {
            Some(chain) if from != to && is_last(chain) => chain.remove(),
            _ => Vec::new(),
        }
    }

    /// The changes were applied, or one process left this to the next.
    pub(crate) fn changed(&mut self, from: Option<&CustomChain>, to: Option<&CustomChain>) {
        if let Some(chain) = to {
            let used = self.used.entry(chain.name().to_owned()).or_insert(Use {
                networks: 0,
                in_table: true,
            });
            used.networks += 1;
            used.in_table = true;
        }
        if let Some(chain) = from
            && let Some(used) = self.used.get_mut(chain.name())
        {
            used.networks = used.networks.saturating_sub(1);
            if used.networks == 0 {
                self.used.remove(chain.name());
            }
        }
    }

    /// The table was loaded anew: it has none of them until their networks are restored.
    pub(crate) fn lost(&mut self) {
        self.used
            .values_mut()
            .for_each(|used| used.in_table = false);
    }

    /// Whether a network of this process is judged by the chain of this name.
    pub(crate) fn uses(&self, name: &str) -> bool {
        self.used.contains_key(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::PolicySpec;

    fn chain(json: &str) -> CustomChain {
        let spec: PolicySpec = serde_json::from_str(json).unwrap();
        CustomChain::compile(spec.check().unwrap().clauses())
    }

    #[test]
    fn a_chain_comes_with_its_first_user_and_goes_with_its_last() {
        let (one, other) = (
            chain(r#"{"allowed_cidrs":["198.51.100.0/24"]}"#),
            chain(r#"{"allowed_cidrs":["203.0.113.0/24"]}"#),
        );
        let mut chains = Chains::default();
        assert_eq!(chains.before(Some(&one)), one.add());
        chains.changed(None, Some(&one));
        assert_eq!(chains.before(Some(&one)), []);
        chains.changed(None, Some(&one));
        assert_eq!(
            chains.after(Some(&one), Some(&other)),
            [],
            "one user is left"
        );
        chains.changed(Some(&one), Some(&other));
        assert_eq!(chains.after(Some(&one), Some(&one)), [], "nothing changes");
        assert_eq!(chains.after(Some(&one), None), one.remove());
        chains.changed(Some(&one), None);
        assert!(!chains.uses(one.name()) && chains.uses(other.name()));
        assert_eq!(chains.before(None), []);
    }

    #[test]
    fn after_a_flush_the_next_user_brings_it_again() {
        let one = chain(r#"{"allowed_domains":["a.example"]}"#);
        let mut chains = Chains::default();
        chains.changed(None, Some(&one));
        chains.lost();
        assert_eq!(chains.before(Some(&one)), one.add());
        chains.changed(None, Some(&one));
        assert_eq!(chains.before(Some(&one)), []);
        assert_eq!(chains.after(Some(&one), None), []);
    }
}
