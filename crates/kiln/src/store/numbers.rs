//! Numbers that only one owner may have at a time. The tables' keys hold that, not this.

use std::ops::Range;

use rusqlite::{OptionalExtension, Transaction, named_params};

use super::StoreError;

/// A column of numbers, each with one owner.
#[derive(Clone, Copy)]
pub(super) struct Numbers {
    pub(super) table: &'static str,
    pub(super) column: &'static str,
}

/// The lowest number of `range` that nobody has: its start if it is free, else the successor of
/// the lowest one without a taken successor. `None` when all are taken.
pub(super) fn lowest_free(
    tx: &Transaction<'_>,
    Numbers { table, column }: Numbers,
    range: &Range<u32>,
) -> Result<Option<u32>, StoreError> {
    let sql = format!(
        "SELECT candidate FROM (
             SELECT :start AS candidate
             UNION ALL
             SELECT {column} + 1 FROM {table} WHERE {column} >= :start AND {column} < :end)
          WHERE candidate < :end
            AND candidate NOT IN (SELECT {column} FROM {table})
          ORDER BY candidate LIMIT 1"
    );
    let parameters = named_params! {":start": range.start, ":end": range.end};
    Ok(tx
        .prepare_cached(&sql)?
        .query_row(parameters, |row| row.get(0))
        .optional()?)
}
