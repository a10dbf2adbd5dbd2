//! Users of jailed VMMs: only one sandbox may have a number at a time.
//!
//! The table's keys hold that, not code; a sandbox that is removed gives its number back.

use std::ops::Range;

use rusqlite::{OptionalExtension, Transaction, named_params};

use super::StoreError;
use super::numbers::{Numbers, lowest_free};

const TAKEN: Numbers = Numbers {
    table: "uid_leases",
    column: "uid",
};

/// The table, within a transaction.
pub(crate) struct Uids<'t>(pub(crate) &'t Transaction<'t>);

impl Uids<'_> {
    /// The number that a sandbox has, or the lowest free one of `range`; `None` when all are
    /// taken. The number stays the sandbox's until it is removed.
    pub(crate) fn take(&self, sandbox: &str, range: Range<u32>) -> Result<Option<u32>, StoreError> {
        if let Some(number) = self.of(sandbox)?
            && range.contains(&number)
        {
            return Ok(Some(number));
        }
        let Some(number) = lowest_free(self.0, TAKEN, &range)? else {
            return Ok(None);
        };
        self.0.execute(
            "INSERT OR REPLACE INTO uid_leases (sandbox, uid) VALUES (:sandbox, :uid)",
            named_params! {":sandbox": sandbox, ":uid": number},
        )?;
        Ok(Some(number))
    }

    fn of(&self, sandbox: &str) -> Result<Option<u32>, StoreError> {
        let sql = "SELECT uid FROM uid_leases WHERE sandbox = :sandbox";
        let parameters = named_params! {":sandbox": sandbox};
        Ok(self
            .0
            .query_row(sql, parameters, |row| row.get(0))
            .optional()?)
    }
}

#[cfg(test)]
mod tests {
    use rusqlite::Connection;

    use super::*;

    fn store_with(sandboxes: &[&str]) -> Connection {
        let mut connection = Connection::open_in_memory().unwrap();
        connection
            .pragma_update(None, "foreign_keys", true)
            .unwrap();
        super::super::schema::migrate(&mut connection).unwrap();
        for id in sandboxes {
            connection
                .execute(
                    "INSERT INTO sandboxes (id, spec, image, state, created_at_ms)
                     VALUES (?1, '{}', 'debian', 'created', 0)",
                    [id],
                )
                .unwrap();
        }
        connection
    }

    #[test]
    fn numbers_are_unique_stay_and_come_back() {
        let mut connection = store_with(&["a", "b", "c", "d"]);
        let tx = connection.transaction().unwrap();
        let take = |sandbox| Uids(&tx).take(sandbox, 10..13).unwrap();
        assert_eq!(take("a"), Some(10));
        assert_eq!(take("b"), Some(11));
        assert_eq!(take("a"), Some(10), "it keeps its number");
        assert_eq!(take("c"), Some(12));
        assert_eq!(take("d"), None, "all are taken");
        tx.execute("DELETE FROM sandboxes WHERE id = 'b'", [])
            .unwrap();
        assert_eq!(
            take("d"),
            Some(11),
            "a removed sandbox gives its number back"
        );
    }

    #[test]
    fn a_number_outside_of_the_range_is_replaced() {
        let mut connection = store_with(&["a"]);
        let tx = connection.transaction().unwrap();
        assert_eq!(Uids(&tx).take("a", 10..13).unwrap(), Some(10));
        assert_eq!(Uids(&tx).take("a", 50..60).unwrap(), Some(50));
    }
}
