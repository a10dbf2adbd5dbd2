//! How long to wait before the next try: what the registry asks for, else ever longer, with some
//! chance in it so that many clients do not come back at once.

use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, SystemTime};

use super::settings::Patience;

/// Counts tries that brought nothing.
#[derive(Debug)]
pub(crate) struct Backoff<'a> {
    patience: &'a Patience,
    failures: u32,
}

impl<'a> Backoff<'a> {
    pub(crate) fn new(patience: &'a Patience) -> Backoff<'a> {
        Backoff {
            patience,
            failures: 0,
        }
    }

    /// Something came: the next failure is a first one again.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }

    /// How long to wait after one more failure; `None` to give up.
    pub(crate) fn next(&mut self, asked: Option<Duration>) -> Option<Duration> {
        self.failures += 1;
        if self.failures >= self.patience.attempts.max(1) {
            return None;
        }
        let longest = Duration::from_millis(self.patience.longest_wait_ms);
        if let Some(asked) = asked {
            return Some(asked.min(longest));
        }
        let doublings = (self.failures - 1).min(16);
        let wait = Duration::from_millis(self.patience.first_wait_ms) * (1 << doublings);
        // Half of it for sure, the other half by chance.
        let chance = (RandomState::new().hash_one(self.failures) % 1000) as u32;
        Some((wait / 2 + wait / 2 * chance / 1000).min(longest))
    }
}

/// Reads `Retry-After`: seconds, or the date of RFC 9110.
pub(crate) fn retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let then = http_date(value)?;
    Some(then.duration_since(now).unwrap_or_default())
}

/// `Sun, 06 Nov 1994 08:49:37 GMT`.
fn http_date(text: &str) -> Option<SystemTime> {
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let words: Vec<&str> = text.split_ascii_whitespace().collect();
    let [_, day, month, year, time, "GMT"] = words[..] else {
        return None;
    };
    let month = MONTHS.iter().position(|name| *name == month)? as u64 + 1;
    let (day, year): (u64, u64) = (day.parse().ok()?, year.parse().ok()?);
    let mut clock = time.split(':').map(str::parse::<u64>);
    let (hour, minute, second) = (
        clock.next()?.ok()?,
        clock.next()?.ok()?,
        clock.next()?.ok()?,
    );
    if !(1..=31).contains(&day)
        || !(1970..=9999).contains(&year)
        || hour > 23
        || minute > 59
        || second > 60
    {
        return None;
    }
    let days = days_since_1970(year, month, day);
    let seconds = days * 86_400 + hour * 3600 + minute * 60 + second;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

/// In the Gregorian calendar, with years that begin in March: leap days come last then.
fn days_since_1970(year: u64, month: u64, day: u64) -> u64 {
    let year = if month <= 2 { year - 1 } else { year };
    let month = (month + 9) % 12;
    let day_of_year = (153 * month + 2) / 5 + day - 1;
    let days = year * 365 + year / 4 - year / 100 + year / 400 + day_of_year;
    days - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn waits_grow_and_end() {
        let patience = Patience {
            attempts: 4,
            first_wait_ms: 100,
            longest_wait_ms: 250,
            ..Patience::default()
        };
        let mut backoff = Backoff::new(&patience);
        for (least, most) in [(50, 100), (100, 200), (200, 250)] {
            let wait = backoff.next(None).unwrap().as_millis();
            assert!((least..=most).contains(&wait), "{wait}");
        }
        assert_eq!(backoff.next(None), None);
        backoff.reset();
        let asked = Some(Duration::from_secs(3600));
        assert_eq!(backoff.next(asked), Some(Duration::from_millis(250)));
    }

    #[test]
    fn both_forms_of_retry_after_are_read() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        assert_eq!(retry_after("120", now), Some(Duration::from_secs(120)));
        let date = "Sun, 06 Nov 1994 08:49:47 GMT";
        assert_eq!(retry_after(date, now), Some(Duration::from_secs(10)));
        assert_eq!(
            retry_after("Sun, 06 Nov 1994 08:00:00 GMT", now),
            Some(Duration::ZERO)
        );
        for wrong in ["", "soon", "-1", "1.5", "Sun, 99 Nov 1994 08:49:37 GMT"] {
            assert_eq!(retry_after(wrong, now), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,40}", n in any::<[u64; 5]>()) {
            let now = SystemTime::now();
            let _ = retry_after(&text, now);
            let _ = retry_after(&format!("x {} Feb {} {}:{}:{} GMT", n[0], n[1], n[2], n[3], n[4]), now);
        }
    }
}
