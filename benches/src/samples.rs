//! Repeated measurements of one thing.

/// In the order they were taken.
#[derive(Clone, Debug, Default)]
pub struct Samples(Vec<f64>);

impl Samples {
    pub fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    /// The middle one, or the mean of the two in the middle; `None` of nothing.
    pub fn median(&self) -> Option<f64> {
        let sorted = self.sorted();
        let half = sorted.len() / 2;
        match sorted.len() % 2 {
            1 => Some(sorted[half]),
            _ => Some((sorted.get(half.checked_sub(1)?)? + sorted[half]) / 2.0),
        }
    }

    /// The one that so large a share of them does not exceed.
    pub fn quantile(&self, share: f64) -> Option<f64> {
        let sorted = self.sorted();
        let last = sorted.len().checked_sub(1)?;
        sorted.get((last as f64 * share).ceil() as usize).copied()
    }

    /// Each of these over the one of `other` taken in the same turn: a machine that is slow for a while is slow for
    /// both.
    pub fn over(&self, other: &Samples) -> Samples {
        Samples(self.0.iter().zip(&other.0).map(|(ours, theirs)| ours / theirs).collect())
    }

    fn sorted(&self) -> Vec<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted
    }

    /// `median [least-most]`.
    pub fn cell(&self) -> String {
        let sorted = self.sorted();
        match (self.median(), sorted.first(), sorted.last()) {
            (Some(median), Some(least), Some(most)) if sorted.len() > 1 => {
                format!("{} [{}-{}]", number(median), number(*least), number(*most))
            }
            (Some(only), _, _) => number(only),
            _ => String::new(),
        }
    }
}

/// Three digits that matter.
pub fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(values: &[f64]) -> Samples {
        Samples(values.to_vec())
    }

    #[test]
    fn a_median_is_in_the_middle_and_of_nothing_there_is_none() {
        assert_eq!(samples(&[]).median(), None);
        assert_eq!(samples(&[3.0]).median(), Some(3.0));
        assert_eq!(samples(&[9.0, 1.0]).median(), Some(5.0));
        assert_eq!(samples(&[9.0, 1.0, 2.0]).median(), Some(2.0));
    }

    #[test]
    fn a_quantile_is_one_of_the_samples() {
        assert_eq!(samples(&[]).quantile(0.5), None);
        assert_eq!(samples(&[5.0]).quantile(0.99), Some(5.0));
        assert_eq!(samples(&[3.0, 1.0, 2.0]).quantile(0.5), Some(2.0));
        let many: Vec<f64> = (0..=100).map(f64::from).collect();
        assert_eq!(samples(&many).quantile(0.99), Some(99.0));
    }

    #[test]
    fn a_ratio_compares_what_was_measured_in_the_same_turn() {
        let ratio = samples(&[1.0, 20.0]).over(&samples(&[2.0, 40.0, 7.0]));
        assert_eq!(ratio.cell(), "0.500 [0.500-0.500]");
    }
}
