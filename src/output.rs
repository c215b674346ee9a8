//! What people and scripts read: tables and one JSON document on stdout, errors on stderr.

use serde::Serialize;
use std::io::Write;

/// Writes to stdout; a reader that went away is no error. What cannot be written may have been the only copy of a secret:
/// that ends the program.
pub fn line(text: &str) {
    let mut out = std::io::stdout();
    if let Err(e) = writeln!(out, "{text}").and_then(|()| out.flush())
        && e.kind() != std::io::ErrorKind::BrokenPipe
    {
        error(&format!("cannot write the output: {e}"));
        std::process::exit(1);
    }
}

pub fn error(text: &str) {
    let _ = writeln!(std::io::stderr(), "tidegate: {text}");
}

/// A remark that does not belong to the output.
pub fn note(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

pub fn json(value: &impl Serialize) {
    line(&serde_json::to_string(value).unwrap_or_default());
}

/// Columns as wide as their widest cell.
pub fn table(head: &[&str], rows: &[Vec<String>]) {
    let width =
        |n: usize| rows.iter().filter_map(|r| r.get(n)).map(|c| c.chars().count()).chain(head.get(n).map(|h| h.len())).max().unwrap_or(0);
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let show = |cells: &mut dyn Iterator<Item = &str>| {
        let padded: Vec<String> = cells.zip(&widths).map(|(c, w)| format!("{c:w$}")).collect();
        line(padded.join("  ").trim_end());
    };
    show(&mut head.iter().copied());
    rows.iter().for_each(|r| show(&mut r.iter().map(String::as_str)));
}

/// `1234567` -> `1.2 MiB`.
pub fn bytes(n: u64) -> String {
    let mut scaled = n;
    let mut unit = "B";
    let mut rest = 0;
    for next in ["KiB", "MiB", "GiB", "TiB"] {
        if scaled < 1024 {
            break;
        }
        rest = (scaled % 1024) * 10 / 1024;
        scaled /= 1024;
        unit = next;
    }
    if unit == "B" { format!("{scaled} B") } else { format!("{scaled}.{rest} {unit}") }
}
