//! How senders make sure that a URL is the receiver's, before they send anything to it.

use serde_json::Value;

use super::{Request, query};

/// The longest challenge that is given back: those of Slack and Meta have some dozen characters.
const CHALLENGE_BYTES_MAX: usize = 1_024;

/// What a webhook does about handshakes; the tokens are filled in.
pub(super) enum Handshake {
    Slack,
    /// Hashes of the tokens that are good.
    Meta(Vec<blake3::Hash>),
}

impl Handshake {
    /// The challenge of Slack's `url_verification`. Slack signs it like any other request.
    pub(super) fn of_slack(&self, request: &Request) -> Option<String> {
        if !matches!(self, Self::Slack) || request.body.len() > 4 * CHALLENGE_BYTES_MAX {
            return None;
        }
        let body: Value = serde_json::from_slice(&request.body).ok()?;
        if body.get("type")?.as_str()? != "url_verification" {
            return None;
        }
        bounded(body.get("challenge")?.as_str()?)
    }

    /// What Meta asks with `hub.mode=subscribe`: its challenge, or that its token is not right. Meta
    /// does not sign it.
    pub(super) fn of_meta(&self, request: &Request) -> Option<Result<String, ()>> {
        let Self::Meta(tokens) = self else {
            return None;
        };
        let value = |name| query::value(&request.query, name);
        if request.method != "GET" || value("hub.mode")? != "subscribe" {
            return None;
        }
        let token = blake3::hash(value("hub.verify_token").unwrap_or_default().as_bytes());
        // `blake3::Hash` compares in constant time.
        let is_right = tokens.contains(&token);
        let challenge = value("hub.challenge").and_then(|challenge| bounded(&challenge));
        Some(challenge.filter(|_| is_right).ok_or(()))
    }
}

fn bounded(challenge: &str) -> Option<String> {
    (challenge.len() <= CHALLENGE_BYTES_MAX).then(|| challenge.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slack_gets_its_challenge_back() {
        // The example of https://docs.slack.dev/reference/events/url_verification
        let request = |body: &'static str| Request {
            method: "POST".into(),
            body: body.into(),
            ..Request::default()
        };
        let asked = request(
            r#"{"token":"Jhj5dZrVaK7ZwHHjRyZWjbDl","challenge":"3eZbrw1aBm2rZgRNFdxV2595E9CY3gmdALWMmHkvFXO7tYXAYM8P","type":"url_verification"}"#,
        );
        let challenge = "3eZbrw1aBm2rZgRNFdxV2595E9CY3gmdALWMmHkvFXO7tYXAYM8P";
        assert_eq!(
            Handshake::Slack.of_slack(&asked).as_deref(),
            Some(challenge)
        );
        let event = request(r#"{"type":"event_callback","challenge":"x"}"#);
        assert_eq!(Handshake::Slack.of_slack(&event), None);
        assert_eq!(Handshake::Meta(vec![]).of_slack(&asked), None);
    }

    #[test]
    fn meta_gets_its_challenge_back_if_it_knows_the_token() {
        let meta = Handshake::Meta(vec![blake3::hash(b"meatyhamhock")]);
        let request = |query: &str| Request {
            method: "GET".into(),
            query: query.into(),
            ..Request::default()
        };
        // The example of Meta's "Webhooks: getting started".
        let asked =
            request("hub.mode=subscribe&hub.challenge=1158201444&hub.verify_token=meatyhamhock");
        assert_eq!(meta.of_meta(&asked), Some(Ok("1158201444".to_owned())));
        let wrong = request("hub.mode=subscribe&hub.challenge=1&hub.verify_token=other");
        assert_eq!(meta.of_meta(&wrong), Some(Err(())));
        let without = request("hub.mode=subscribe&hub.challenge=1");
        assert_eq!(meta.of_meta(&without), Some(Err(())));
        assert_eq!(meta.of_meta(&request("a=1")), None);
        assert_eq!(Handshake::Slack.of_meta(&asked), None);
    }
}
