//! Order statistics of a handful of samples.

/// Samples of one figure, in its unit.
#[derive(Debug, Default, Clone)]
pub(super) struct Samples(Vec<f64>);

impl Samples {
    pub(super) fn push(&mut self, sample: f64) {
        let place = self.0.partition_point(|other| *other <= sample);
        self.0.insert(place, sample);
    }

    pub(super) fn count(&self) -> usize {
        self.0.len()
    }

    /// The middle sample, or the mean of the two in the middle.
    pub(super) fn median(&self) -> Option<f64> {
        let middle = self.0.len() / 2;
        let upper = *self.0.get(middle)?;
        if self.0.len() % 2 == 1 {
            return Some(upper);
        }
        Some(f64::midpoint(*self.0.get(middle.checked_sub(1)?)?, upper))
    }

    pub(super) fn min(&self) -> Option<f64> {
        self.0.first().copied()
    }

    pub(super) fn max(&self) -> Option<f64> {
        self.0.last().copied()
    }
}

impl FromIterator<f64> for Samples {
    fn from_iter<I: IntoIterator<Item = f64>>(samples: I) -> Self {
        let mut all = Self::default();
        samples.into_iter().for_each(|sample| all.push(sample));
        all
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn median(samples: &[f64]) -> Option<f64> {
        samples.iter().copied().collect::<Samples>().median()
    }

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0]), Some(3.0));
        assert_eq!(median(&[5.0, 1.0, 3.0]), Some(3.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 100.0]), Some(3.0));
    }

    proptest! {
        #[test]
        fn order_does_not_matter_and_bounds_hold(mut all in prop::collection::vec(0.0..1e6, 1..40)) {
            let samples: Samples = all.iter().copied().collect();
            all.reverse();
            prop_assert_eq!(samples.median(), median(&all));
            prop_assert!(samples.min() <= samples.median() && samples.median() <= samples.max());
            prop_assert_eq!(samples.count(), all.len());
        }
    }
}
