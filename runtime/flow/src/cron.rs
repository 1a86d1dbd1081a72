//! `cron:` and `timezone:`: when a trigger is due by the clock on the wall of some place.
//!
//! Time zones are those that the program was built with, never those of the host: the same file is
//! due at the same times everywhere, and a host without time zones is as good as any.
//!
//! # Invariants
//!
//! - `a_daylight_saving_table_of_schedules_is_right_in_both_directions`: an expression whose hours
//!   are listed fires once a listed time, be that there not at all or twice; one whose hours begin
//!   with `*` goes on at its pace.
//! - `what_never_fires_is_refused`.
//! - `the_next_is_always_later`.

use std::fmt;
use std::sync::OnceLock;

use croner::parser::{CronParser, Seconds, Year};
use jiff::civil::{DateTime, date};
use jiff::tz::{AmbiguousOffset, TimeZone, TimeZoneDatabase};
use jiff::{Timestamp, Zoned};

use crate::text::{nearest, shown};

/// The time zone when the flow names none.
pub const ZONE_DEFAULT: &str = "UTC";

/// The longest expression: a list of every minute of an hour has room in it.
const CHARS_MAX: usize = 200;

/// The fields, the last five of which are always there: name, what it can be, and what is in its
/// place while another one is looked at.
const FIELDS: [(&str, &str); 6] = [
    ("second", "0 to 59"),
    ("minute", "0 to 59"),
    ("hour", "0 to 23"),
    ("day of the month", "1 to 31, or `L` for the last"),
    ("month", "1 to 12, or JAN to DEC"),
    (
        "day of the week",
        "0 to 7 (0 and 7 are Sunday), or SUN to SAT",
    ),
];

/// Words for expressions.
const WORDS: [&str; 6] = [
    "@yearly",
    "@annually",
    "@monthly",
    "@weekly",
    "@daily",
    "@hourly",
];

/// A schedule by the clock on the wall. It can only be one that fires.
#[derive(Clone)]
pub struct Cron {
    text: String,
    zone: String,
    pattern: croner::Cron,
    place: TimeZone,
}

/// Why an expression is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unreadable {
    /// The part that is wrong; the whole when none.
    pub(crate) part: Option<String>,
    /// What is wrong with it.
    pub(crate) why: String,
    /// What to write.
    pub(crate) help: String,
}

/// Why there is no schedule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The expression cannot be read.
    Unreadable(Unreadable),
    /// There is no time that it fits.
    Never,
    /// There is no such time zone; perhaps this one was meant.
    NoZone(Option<&'static str>),
}

impl Cron {
    /// Reads an expression, for a time zone.
    pub(crate) fn read(text: &str, zone: &str) -> Result<Self, Fault> {
        let place = place(zone)?;
        let pattern = parser().parse(text).ok().filter(|_| is_plain(text));
        let Some(pattern) = pattern else {
            return Err(Fault::Unreadable(explain(text)));
        };
        // Whatever fits at all fits within the years of the calendar's cycle from here.
        let begin = date(2000, 1, 1).at(0, 0, 0, 0);
        if pattern.find_next_occurrence(&begin, true).is_err() {
            return Err(Fault::Never);
        }
        Ok(Self {
            text: text.trim().to_owned(),
            zone: place.iana_name().unwrap_or(zone).to_owned(),
            pattern,
            place,
        })
    }

    /// The expression, as it was written.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The name of its time zone.
    pub fn zone(&self) -> &str {
        &self.zone
    }

    /// The first time after this one that it is due; both in milliseconds since 1970. None if that
    /// is beyond what a calendar holds.
    pub fn next_after(&self, ms: u64) -> Option<u64> {
        let after = Timestamp::from_millisecond(i64::try_from(ms).ok()?).ok()?;
        let next = if self.pattern.pattern.hours.from_wildcard {
            let after = after.to_zoned(self.place.clone());
            let next: Zoned = self.pattern.find_next_occurrence(&after, false).ok()?;
            next.timestamp()
        } else {
            self.next_listed(after)?
        };
        u64::try_from(next.as_millisecond()).ok()
    }

    /// The same where hours are listed: each listed time of the wall is one moment.
    fn next_listed(&self, after: Timestamp) -> Option<Timestamp> {
        let mut wall = after.to_zoned(self.place.clone()).datetime();
        // Goes round more than once only within the hour that comes twice.
        loop {
            wall = self.pattern.find_next_occurrence(&wall, false).ok()?;
            let moment = self.moment(wall)?;
            if moment > after {
                return Some(moment);
            }
        }
    }

    /// When the wall shows this: for the first time if it does so twice, and the moment at which the
    /// clocks go forward if it never does.
    fn moment(&self, wall: DateTime) -> Option<Timestamp> {
        let times = self.place.to_ambiguous_timestamp(wall);
        match times.offset() {
            AmbiguousOffset::Gap { .. } => {
                let before = times.earlier().ok()?;
                Some(self.place.following(before).next()?.timestamp())
            }
            _ => times.earlier().ok(),
        }
    }
}

impl PartialEq for Cron {
    fn eq(&self, other: &Self) -> bool {
        (&self.text, &self.zone) == (&other.text, &other.zone)
    }
}

impl Eq for Cron {}

impl fmt::Debug for Cron {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Cron({self})")
    }
}

impl fmt::Display for Cron {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} ({})", self.text, self.zone)
    }
}

fn parser() -> CronParser {
    CronParser::builder()
        .seconds(Seconds::Optional)
        .year(Year::Disallowed)
        .build()
}

/// Neither long nor strange: what an expression is made of is plain text.
fn is_plain(text: &str) -> bool {
    text.len() <= CHARS_MAX && text.chars().all(|it| it.is_ascii_graphic() || it == ' ')
}

fn zones() -> &'static TimeZoneDatabase {
    static ZONES: OnceLock<TimeZoneDatabase> = OnceLock::new();
    ZONES.get_or_init(TimeZoneDatabase::bundled)
}

fn names() -> &'static [String] {
    static NAMES: OnceLock<Vec<String>> = OnceLock::new();
    NAMES.get_or_init(|| zones().available().map(|name| name.to_string()).collect())
}

fn place(zone: &str) -> Result<TimeZone, Fault> {
    zones().get(zone).map_err(|_| {
        let city = |name: &&String| {
            name.rsplit('/')
                .next()
                .is_some_and(|city| city.eq_ignore_ascii_case(&zone.trim().replace(' ', "_")))
        };
        let by_city = names().iter().find(city).map(String::as_str);
        Fault::NoZone(by_city.or_else(|| nearest(zone, names().iter().map(String::as_str))))
    })
}

/// Finds out which part of an expression is wrong, and what was probably meant.
fn explain(text: &str) -> Unreadable {
    let form = "write five fields: minute, hour, day of the month, month, day of the week; or six, with the second first";
    let whole = |why: String, help: &str| Unreadable {
        part: None,
        why,
        help: help.to_owned(),
    };
    let text = text.trim();
    if text.len() > CHARS_MAX {
        return whole(format!("it is longer than {CHARS_MAX} characters"), form);
    }
    if text.starts_with('@') {
        let help = match nearest(text, WORDS) {
            Some(meant) => format!("did you mean {}?", shown(meant)),
            None => format!("the words there are: {}", WORDS.join(", ")),
        };
        return whole(format!("{} is no word for a schedule", shown(text)), &help);
    }
    if crate::units::parse_duration(text).is_ok() {
        let help = format!("write `every: {text}`");
        return whole("this is a duration".to_owned(), &help);
    }
    let parts: Vec<&str> = text.split_whitespace().collect();
    let fields = match parts.len() {
        5 => &FIELDS[1..],
        6 => &FIELDS[..],
        0 => return whole("there is nothing in it".to_owned(), form),
        1 => return whole("it has one field".to_owned(), form),
        7 => {
            return whole(
                "it has seven fields".to_owned(),
                &format!("there is no field for the year: {form}"),
            );
        }
        count => return whole(format!("it has {count} fields"), form),
    };
    for (at, ((name, range), part)) in fields.iter().zip(&parts).enumerate() {
        let mut alone = vec!["*"; parts.len()];
        alone[at] = part;
        if is_plain(part) && parser().parse(&alone.join(" ")).is_ok() {
            continue;
        }
        return Unreadable {
            part: Some((*part).to_owned()),
            why: format!("this is no {name}"),
            help: meant(name, part).unwrap_or_else(|| {
                format!("the {name} is {range}; or `*`, a list `1,2`, a range `1-5`, a step `*/2`")
            }),
        };
    }
    whole("it is not a cron expression".to_owned(), form)
}

/// What was probably meant by a field.
fn meant(name: &str, part: &str) -> Option<String> {
    let did_you_mean = |meant: &str| Some(format!("did you mean {}?", shown(meant)));
    if let Some(step) = part.strip_prefix('/') {
        return did_you_mean(&format!("*/{step}"));
    }
    if let Some((start, step)) = part.split_once('/')
        && start.parse::<u8>().is_ok()
        && step.parse::<u8>().is_ok()
    {
        let last = match name {
            "second" | "minute" => 59,
            "hour" => 23,
            "day of the month" => 31,
            "month" => 12,
            _ => 6,
        };
        return did_you_mean(&format!("{start}-{last}/{step}"));
    }
    let short: String = part.chars().take(3).collect::<String>().to_uppercase();
    let short_names: &[&str] = match name {
        "month" => &[
            "JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC",
        ],
        "day of the week" => &["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"],
        _ => &[],
    };
    let is_word = part.chars().count() > 3 && part.chars().all(char::is_alphabetic);
    (is_word && short_names.contains(&short.as_str()))
        .then(|| format!("did you mean {}?", shown(&short)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cron(text: &str, zone: &str) -> Cron {
        Cron::read(text, zone).unwrap_or_else(|fault| panic!("{text} {zone}: {fault:?}"))
    }

    fn ms(text: &str) -> u64 {
        let at: Timestamp = text.parse().unwrap();
        u64::try_from(at.as_millisecond()).unwrap()
    }

    /// The times that it is due after `from`, as many as there are in `expect`, in UTC.
    #[track_caller]
    fn check(text: &str, zone: &str, from: &str, expect: &[&str]) {
        let cron = cron(text, zone);
        let mut at = ms(from);
        let mut found = Vec::new();
        for _ in expect {
            at = cron.next_after(at).unwrap();
            let time = Timestamp::from_millisecond(i64::try_from(at).unwrap()).unwrap();
            found.push(time.to_string());
        }
        assert_eq!(found, expect, "{text} in {zone} from {from}");
    }

    #[test]
    #[expect(clippy::too_many_lines, reason = "a table")]
    fn a_daylight_saving_table_of_schedules_is_right_in_both_directions() {
        // Berlin, forward: 02:00 becomes 03:00 on 29 March 2026, at 01:00 UTC.
        let berlin = "Europe/Berlin";
        let before = "2026-03-27T12:00:00Z";
        // A time that does not exist is the moment at which the clocks go forward.
        check(
            "30 2 * * *",
            berlin,
            before,
            &[
                "2026-03-28T01:30:00Z",
                "2026-03-29T01:00:00Z",
                "2026-03-30T00:30:00Z",
            ],
        );
        check(
            "0 2 * * *",
            berlin,
            before,
            &[
                "2026-03-28T01:00:00Z",
                "2026-03-29T01:00:00Z",
                "2026-03-30T00:00:00Z",
            ],
        );
        // Several that do not exist, and one that is at that moment anyway: once.
        check(
            "0,20,40 2,3 * * *",
            berlin,
            "2026-03-29T00:30:00Z",
            &[
                "2026-03-29T01:00:00Z",
                "2026-03-29T01:20:00Z",
                "2026-03-29T01:40:00Z",
                "2026-03-30T00:00:00Z",
            ],
        );
        check(
            "59 1 * * *",
            berlin,
            "2026-03-28T12:00:00Z",
            &["2026-03-29T00:59:00Z", "2026-03-29T23:59:00Z"],
        );
        check(
            "0 3 * * *",
            berlin,
            "2026-03-28T12:00:00Z",
            &["2026-03-29T01:00:00Z", "2026-03-30T01:00:00Z"],
        );
        // At its pace: the hour that does not exist is left out.
        check(
            "30 * * * *",
            berlin,
            "2026-03-29T00:00:00Z",
            &["2026-03-29T00:30:00Z", "2026-03-29T01:30:00Z"],
        );
        check(
            "*/20 * * * *",
            berlin,
            "2026-03-29T00:30:00Z",
            &[
                "2026-03-29T00:40:00Z",
                "2026-03-29T01:00:00Z",
                "2026-03-29T01:20:00Z",
            ],
        );
        // Back: 03:00 becomes 02:00 on 25 October 2026, at 01:00 UTC. A listed time: the first of the two.
        check(
            "30 2 * * *",
            berlin,
            "2026-10-24T12:00:00Z",
            &["2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"],
        );
        check(
            "30 2 * * *",
            berlin,
            "2026-10-25T01:10:00Z",
            &["2026-10-26T01:30:00Z"],
        );
        check(
            "15,45 1,2 * * *",
            berlin,
            "2026-10-25T00:00:00Z",
            &[
                "2026-10-25T00:15:00Z",
                "2026-10-25T00:45:00Z",
                "2026-10-26T00:15:00Z",
            ],
        );
        check(
            "0 3 * * *",
            berlin,
            "2026-10-24T12:00:00Z",
            &["2026-10-25T02:00:00Z", "2026-10-26T02:00:00Z"],
        );
        // At its pace: in both of the two hours.
        check(
            "30 * * * *",
            berlin,
            "2026-10-25T00:00:00Z",
            &[
                "2026-10-25T00:30:00Z",
                "2026-10-25T01:30:00Z",
                "2026-10-25T02:30:00Z",
            ],
        );
        check(
            "*/20 * * * *",
            berlin,
            "2026-10-25T00:35:00Z",
            &[
                "2026-10-25T00:40:00Z",
                "2026-10-25T01:00:00Z",
                "2026-10-25T01:20:00Z",
                "2026-10-25T01:40:00Z",
                "2026-10-25T02:00:00Z",
            ],
        );

        // New York: forward on 8 March 2026 at 07:00 UTC, back on 1 November at 06:00 UTC.
        let york = "America/New_York";
        check(
            "30 2 * * *",
            york,
            "2026-03-07T12:00:00Z",
            &["2026-03-08T07:00:00Z", "2026-03-09T06:30:00Z"],
        );
        check(
            "30 1 * * *",
            york,
            "2026-10-31T12:00:00Z",
            &["2026-11-01T05:30:00Z", "2026-11-02T06:30:00Z"],
        );
        check(
            "30 * * * *",
            york,
            "2026-11-01T05:00:00Z",
            &[
                "2026-11-01T05:30:00Z",
                "2026-11-01T06:30:00Z",
                "2026-11-01T07:30:00Z",
            ],
        );
        check(
            "0 0 * * *",
            york,
            "2026-10-31T12:00:00Z",
            &["2026-11-01T04:00:00Z", "2026-11-02T05:00:00Z"],
        );

        // Lord Howe: half an hour. Back on 5 April 2026 (02:00 becomes 01:30, at 15:00 UTC the day
        // before), forward on 4 October (02:00 becomes 02:30, at 15:30 UTC the day before).
        let howe = "Australia/Lord_Howe";
        check(
            "45 1 * * *",
            howe,
            "2026-04-04T12:00:00Z",
            &["2026-04-04T14:45:00Z", "2026-04-05T15:15:00Z"],
        );
        check(
            "15 1 * * *",
            howe,
            "2026-04-04T12:00:00Z",
            &["2026-04-04T14:15:00Z", "2026-04-05T14:45:00Z"],
        );
        check(
            "*/15 * * * *",
            howe,
            "2026-04-04T14:20:00Z",
            &[
                "2026-04-04T14:30:00Z",
                "2026-04-04T14:45:00Z",
                "2026-04-04T15:00:00Z",
                "2026-04-04T15:15:00Z",
                "2026-04-04T15:30:00Z",
                "2026-04-04T15:45:00Z",
            ],
        );
        check(
            "15 2 * * *",
            howe,
            "2026-10-03T12:00:00Z",
            &["2026-10-03T15:30:00Z", "2026-10-04T15:15:00Z"],
        );
        check(
            "45 2 * * *",
            howe,
            "2026-10-03T12:00:00Z",
            &["2026-10-03T15:45:00Z", "2026-10-04T15:45:00Z"],
        );
        check(
            "15 * * * *",
            howe,
            "2026-10-03T14:00:00Z",
            &["2026-10-03T14:45:00Z", "2026-10-03T16:15:00Z"],
        );

        // One without, on the days of the others.
        let kolkata = "Asia/Kolkata";
        check(
            "30 2 * * *",
            kolkata,
            "2026-03-28T00:00:00Z",
            &["2026-03-28T21:00:00Z", "2026-03-29T21:00:00Z"],
        );
        check(
            "30 2 * * *",
            "UTC",
            "2026-10-24T12:00:00Z",
            &["2026-10-25T02:30:00Z", "2026-10-26T02:30:00Z"],
        );
        check(
            "30 * * * *",
            "UTC",
            "2026-10-25T00:00:00Z",
            &["2026-10-25T00:30:00Z", "2026-10-25T01:30:00Z"],
        );
    }

    #[test]
    fn what_expressions_can_say() {
        let from = "2026-11-27T10:00:00Z"; // A Friday.
        check(
            "0 6 * * MON-FRI",
            "UTC",
            from,
            &["2026-11-30T06:00:00Z", "2026-12-01T06:00:00Z"],
        );
        check("0 6 1 jan *", "UTC", from, &["2027-01-01T06:00:00Z"]);
        check("@daily", "Europe/Berlin", from, &["2026-11-27T23:00:00Z"]);
        check("@hourly", "UTC", from, &["2026-11-27T11:00:00Z"]);
        check(
            "*/10 * * * * *",
            "UTC",
            from,
            &["2026-11-27T10:00:10Z", "2026-11-27T10:00:20Z"],
        );
        check(
            "0 0 29 2 *",
            "UTC",
            from,
            &["2028-02-29T00:00:00Z", "2032-02-29T00:00:00Z"],
        );
        check(
            "0 0 L * *",
            "UTC",
            from,
            &["2026-11-30T00:00:00Z", "2026-12-31T00:00:00Z"],
        );
        check("0 0 * * 7", "UTC", from, &["2026-11-29T00:00:00Z"]);
        // Of a day of the month and one of the week, either is enough, as in every cron.
        check(
            "0 0 1 * SUN",
            "UTC",
            from,
            &[
                "2026-11-29T00:00:00Z",
                "2026-12-01T00:00:00Z",
                "2026-12-06T00:00:00Z",
            ],
        );
    }

    #[test]
    fn what_never_fires_is_refused() {
        for text in ["0 0 30 2 *", "0 0 31 4,6,9,11 *", "0 0 31 feb *"] {
            assert_eq!(Cron::read(text, "UTC").unwrap_err(), Fault::Never, "{text}");
        }
    }

    #[test]
    fn a_zone_is_the_name_of_a_place() {
        assert_eq!(cron("@daily", "europe/berlin").zone(), "Europe/Berlin");
        let meant = |zone| Cron::read("@daily", zone).unwrap_err();
        assert_eq!(meant("Europe/Berln"), Fault::NoZone(Some("Europe/Berlin")));
        assert_eq!(meant("new york"), Fault::NoZone(Some("America/New_York")));
        assert_eq!(meant("Middle Earth/Shire"), Fault::NoZone(None));
    }

    #[track_caller]
    fn check_help(text: &str, part: Option<&str>, why: &str, help: &str) {
        let Err(Fault::Unreadable(found)) = Cron::read(text, "UTC") else {
            panic!("{text}: {:?}", Cron::read(text, "UTC"))
        };
        assert_eq!(found.part.as_deref(), part, "{text}: {found:?}");
        assert!(found.why.contains(why), "{text}: {found:?}");
        assert!(found.help.contains(help), "{text}: {found:?}");
    }

    #[test]
    fn what_was_meant_is_said() {
        check_help("0 25 * * *", Some("25"), "no hour", "0 to 23");
        check_help("60 * * * *", Some("60"), "no minute", "0 to 59");
        check_help(
            "0 6 * * MONDAY",
            Some("MONDAY"),
            "no day of the week",
            "`MON`",
        );
        check_help("0 6 * january *", Some("january"), "no month", "`JAN`");
        check_help("/5 * * * *", Some("/5"), "no minute", "`*/5`");
        check_help("0/5 * * * *", Some("0/5"), "no minute", "`0-59/5`");
        check_help("0 6 * *", None, "4 fields", "five fields");
        check_help(
            "0 0 6 * * * 2027",
            None,
            "seven fields",
            "no field for the year",
        );
        check_help("@dayly", None, "no word", "`@daily`");
        check_help("30s", None, "a duration", "`every: 30s`");
        check_help("", None, "nothing in it", "five fields");
        check_help(&"1,".repeat(200), None, "longer than 200", "five fields");
    }

    proptest! {
        #[test]
        fn the_next_is_always_later(
            minute in 0_u8..60, hour in 0_u8..24, star in any::<bool>(),
            zone in prop::sample::select(vec!["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "UTC", "Africa/Casablanca"]),
            at in 1_700_000_000_000_u64..2_500_000_000_000,
        ) {
            let hour = if star { "*".to_owned() } else { hour.to_string() };
            let cron = cron(&format!("{minute} {hour} * * *"), zone);
            let next = cron.next_after(at).unwrap();
            prop_assert!(next > at);
            prop_assert!(next - at <= 49 * 3_600_000, "{}", next - at);
            // There is nothing between: from just before it, it is the next as well.
            prop_assert_eq!(cron.next_after(next - 1), Some(next));
        }

        #[test]
        fn no_text_makes_it_panic(text in "[0-9*/,@LW# a-zA-Z?+-]{0,24}") {
            let _unused = Cron::read(&text, "UTC").is_ok();
        }
    }
}
