//! Chance that comes back with its seed.

/// SplitMix64 (Steele, Lea, Flood 2014): small, and good enough to choose steps.
#[derive(Debug)]
pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// Below `end`; 0 when there is nothing to choose from.
    pub(super) fn below(&mut self, end: u64) -> u64 {
        self.roll().checked_rem(end).unwrap_or(0)
    }

    /// One of these, each as often as its weight says; `None` when nothing weighs anything.
    pub(super) fn one_of<T: Clone>(&mut self, all: &[(u64, T)]) -> Option<T> {
        let mut place = self.below(all.iter().map(|(weight, _)| weight).sum());
        let chosen = all
            .iter()
            .find(|(weight, _)| match place.checked_sub(*weight) {
                Some(rest) => {
                    place = rest;
                    false
                }
                None => true,
            });
        chosen.map(|(_, one)| one.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_comes_back_and_another_is_another() {
        let rolls = |seed| {
            let mut dice = Dice::new(seed);
            std::array::from_fn::<u64, 8, _>(|_| dice.roll())
        };
        assert_eq!(rolls(7), rolls(7));
        assert_ne!(rolls(7), rolls(8));
    }

    #[test]
    fn weights_are_kept_to() {
        let mut dice = Dice::new(1);
        let mut seen = [0_u32; 3];
        for _ in 0..4000 {
            seen[dice.one_of(&[(1, 0), (0, 1), (3, 2)]).unwrap()] += 1;
        }
        assert_eq!(seen[1], 0);
        assert!((800..1200).contains(&seen[0]), "{seen:?}");
        assert_eq!(dice.one_of::<u8>(&[]), None);
        assert_eq!(dice.one_of(&[(0, 'a')]), None);
    }
}
