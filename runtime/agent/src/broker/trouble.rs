//! What the broker says when it ends something, in words that tell a person what to do.

/// Says what the broker's own words mean; words that are not known stay as they are.
pub fn explain(words: &str) -> String {
    if let Some(limit) = timed_out_after(words) {
        return format!(
            "the broker's consumer timeout of {limit}: a delivery was not acknowledged in that time; \
             shorten the step's `timeout`, or raise the broker's `consumer_timeout`"
        );
    }
    let upper = words.to_ascii_uppercase().replace(['-', '_'], " ");
    let has = |part: &str| upper.contains(part);
    if has("ACCESS REFUSED") && (has("LOGIN") || has("AUTHENTICAT")) {
        return format!(
            "the broker refuses the login: its user is unknown, or the password is wrong or was changed ({words})"
        );
    }
    if has("ACCESS REFUSED") || has("NOT ALLOWED") {
        return format!("the broker refuses access: the user lacks a permission ({words})");
    }
    if has("NOT FOUND") && has("NO QUEUE") {
        return format!(
            "the step's queue is not there: it is taken from again as soon as the control plane has declared it ({words})"
        );
    }
    words.to_owned()
}

/// Returns the limit if these are the words of RabbitMQ's consumer timeout:
/// `PRECONDITION_FAILED - delivery acknowledgement on channel 1 timed out. Timeout value used:
/// 1800000 ms. …`
fn timed_out_after(words: &str) -> Option<String> {
    if !words.contains("acknowledgement") || !words.contains("timed out") {
        return None;
    }
    let (_, after) = words.split_once("Timeout value used: ")?;
    let digits = after.split(|it: char| !it.is_ascii_digit()).next()?;
    let milliseconds: u64 = digits.parse().ok()?;
    Some(match milliseconds {
        ms if ms >= 60_000 && ms.is_multiple_of(60_000) => format!("{} min", ms / 60_000),
        ms => crate::exit::duration(ms),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(words: &str, begins: &str) {
        let explained = explain(words);
        assert!(explained.starts_with(begins), "{explained}");
    }

    #[test]
    fn what_the_broker_says_is_explained() {
        check(
            "protocol error: PRECONDITION_FAILED - delivery acknowledgement on channel 1 timed out. Timeout value used: 1800000 ms. This timeout value can be configured, see consumers doc guide to learn more",
            "the broker's consumer timeout of 30 min: ",
        );
        check(
            "PRECONDITION_FAILED - delivery acknowledgement on channel 1 timed out. Timeout value used: 15500 ms",
            "the broker's consumer timeout of 15500 ms: ",
        );
        check(
            "ACCESS_REFUSED - Login was refused using authentication mechanism PLAIN. For details see the broker logfile.",
            "the broker refuses the login: ",
        );
        check(
            "ACCESS-REFUSED: ACCESS_REFUSED - write access to exchange 'a' in vhost '/' refused for user 'u'",
            "the broker refuses access: ",
        );
        check(
            "NOT-FOUND: NOT_FOUND - no queue 'a' in vhost '/'",
            "the step's queue is not there: ",
        );
        check("connection reset by peer", "connection reset by peer");
        check("NOT_FOUND - no exchange 'a'", "NOT_FOUND - no exchange 'a'");
    }
}
