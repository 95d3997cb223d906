//! Printing for people and for programs.

use std::io::{self, Write};

use serde::Serialize;

/// Whether to colour what goes to a terminal or not to one.
pub fn coloured(terminal: bool) -> bool {
    terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// One JSON document, with a newline.
pub fn json(value: &impl Serialize) -> io::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, value)?;
    out.write_all(b"\n")
}

pub fn line(text: &str) -> io::Result<()> {
    writeln!(io::stdout().lock(), "{text}")
}

/// Rows in columns as wide as their widest cell; the last column is not padded.
pub fn table(rows: &[Vec<String>]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    write_table(&mut out, rows)
}

fn write_table(out: &mut impl Write, rows: &[Vec<String>]) -> io::Result<()> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|c| c.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(&format!("{cell:<width$}  "));
        }
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    #[test]
    fn columns_line_up() {
        let rows = [["name", "x"], ["a longer name", "y"]].map(|row| row.map(String::from).to_vec());
        let mut out = Vec::new();
        write_table(&mut out, &rows).unwrap();
        expect![[r#"
            name           x
            a longer name  y
        "#]]
        .assert_eq(&String::from_utf8(out).unwrap());
    }
}
