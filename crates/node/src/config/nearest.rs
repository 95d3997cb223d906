//! The name somebody probably meant.

/// Of `known`, the name that `wrong` is at most a third of its letters away from, or the start of.
pub fn nearest<'a>(wrong: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|name| (distance(wrong, name), name))
        .filter(|(distance, name)| *distance <= name.len().max(wrong.len()) / 3 || name.starts_with(wrong))
        .min()
        .map(|(_, name)| name)
}

/// Letters to insert, delete or replace (Levenshtein), O(n·m) time and O(m) space.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_finds_its_name_and_nonsense_does_not() {
        let known = ["max-jobs", "max-silent-time", "cores", "ssh"];
        assert_eq!(nearest("maxjobs", known), Some("max-jobs"));
        assert_eq!(nearest("max_silent_time", known), Some("max-silent-time"));
        assert_eq!(nearest("core", known), Some("cores"));
        assert_eq!(nearest("banana", known), None);
    }
}
