//! What subcommands share in printing: tables that fit the terminal, sizes and counts for people.

use comfy_table::{ContentArrangement, Table, presets};

/// Columns to fit a table into: the terminal's, or 100 where stdout is none.
pub fn new_table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(header.to_vec());
    table
}

/// Bytes for people: `4.92 GB` (powers of ten, as disks and downloads are counted).
pub fn bytes(n: u64) -> String {
    scaled(n, &["B", "kB", "MB", "GB", "TB", "PB", "EB"])
}

/// Counts for people: `8.03 B` parameters.
pub fn count(n: u64) -> String {
    scaled(n, &["", "K", "M", "B", "T", "Q", "Qi"]).trim_end().to_owned()
}

fn scaled(n: u64, units: &[&str]) -> String {
    let mut value = n as f64;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    match unit {
        0 => format!("{n} {}", units[0]),
        _ if value < 9.995 => format!("{value:.2} {}", units[unit]),
        _ if value < 99.95 => format!("{value:.1} {}", units[unit]),
        _ => format!("{value:.0} {}", units[unit]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_keep_three_digits() {
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(1_234), "1.23 kB");
        assert_eq!(bytes(28_400_000_000), "28.4 GB");
        assert_eq!(bytes(999_600), "1.00 MB");
        assert_eq!(count(7), "7");
        assert_eq!(count(8_030_000_000), "8.03 B");
    }
}
