//! Text in columns.

/// Rows with each column as wide as its widest cell, two spaces between.
pub(crate) fn align<const N: usize>(rows: &[[String; N]]) -> String {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let lines: Vec<_> = rows.iter().map(|row| line(row, &widths)).collect();
    lines.join("\n")
}

fn line<const N: usize>(row: &[String; N], widths: &[usize; N]) -> String {
    let cells: Vec<_> = row
        .iter()
        .zip(widths)
        .map(|(cell, width)| {
            // Not by `format!`, which counts bytes no better and knows no control characters.
            let cell: String = cell.chars().filter(|it| !it.is_control()).collect();
            let fill = width.saturating_sub(cell.chars().count());
            cell + &" ".repeat(fill)
        })
        .collect();
    cells.join("  ").trim_end().to_owned()
}

/// A span of time in its largest unit that says enough.
pub(crate) fn age(ms: u64) -> String {
    match ms / 1000 {
        seconds @ 0..120 => format!("{seconds}s"),
        seconds @ 120..7200 => format!("{}m", seconds / 60),
        seconds @ 7200..172_800 => format!("{}h", seconds / 3600),
        seconds => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_short() {
        let ages = [
            (0, "0s"),
            (119_999, "119s"),
            (120_000, "2m"),
            (7_200_000, "2h"),
            (172_800_000, "2d"),
        ];
        for (ms, text) in ages {
            assert_eq!(age(ms), text);
        }
    }
}
