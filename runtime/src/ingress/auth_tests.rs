//! Signature schemes against the vectors that were published for them.

use super::*;

use towpath_flow::webhook::Hmac;

const FIVE_MINUTES: Duration = Duration::from_secs(300);

fn auth(scheme: &Scheme, secrets: &[&str]) -> Auth {
    let secrets: Vec<String> = secrets.iter().map(|one| (*one).to_owned()).collect();
    Auth::new(scheme, "shop", &secrets).unwrap()
}

fn request(body: &str, headers: &[(&str, &str)]) -> Request {
    let header = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    Request {
        method: "POST".into(),
        headers: headers.iter().map(header).collect(),
        body: bytes::Bytes::copy_from_slice(body.as_bytes()),
        ..Request::default()
    }
}

fn wrong() -> Result<(), Refusal> {
    Err(Refusal::Wrong { what: "signature" })
}

/// The example of GitHub's manual, "Validating webhook deliveries", "Testing the webhook payload
/// validation".
#[test]
fn github_s_documented_example_is_believed() {
    let signature = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";
    let secret = "It's a Secret to Everybody";
    let signed = |body| request(body, &[("X-Hub-Signature-256", signature)]);
    let github = auth(&Scheme::GitHub, &[secret]);
    assert_eq!(github.verify(&signed("Hello, World!"), 0), Ok(()));
    assert_eq!(github.verify(&signed("Hello, World?"), 0), wrong());
    let rotating = auth(&Scheme::GitHub, &["the next one", secret]);
    assert_eq!(rotating.verify(&signed("Hello, World!"), 0), Ok(()));
    let other = auth(&Scheme::GitHub, &["the next one"]);
    assert_eq!(other.verify(&signed("Hello, World!"), 0), wrong());
    // SHA-1, which GitHub still sends, is not enough.
    let old = request("Hello, World!", &[("X-Hub-Signature", "sha1=01")]);
    assert!(matches!(
        github.verify(&old, 0),
        Err(Refusal::Missing { .. })
    ));
    for unreadable in ["757107ea", "sha256=xyz", "sha256="] {
        let request = request("Hello, World!", &[("X-Hub-Signature-256", unreadable)]);
        assert!(github.verify(&request, 0).is_err(), "{unreadable}");
    }
}

/// The example of Slack's manual, "Verifying requests from Slack".
#[test]
fn slack_s_documented_example_is_believed() {
    let body = "token=xyzz0WbapA4vBCDEFasx0q6G&team_id=T1DC2JH3J&team_domain=testteamnow&channel_id=G8PSS9T3V&channel_name=foobar&user_id=U2CERLKJA&user_name=roadrunner&command=%2Fwebhook-collect&text=&response_url=https%3A%2F%2Fhooks.slack.com%2Fcommands%2FT1DC2JH3J%2F397700885554%2F96rGlfmibIGlgcZRskXaIFfN&trigger_id=398738663015.47445629121.803a0bc887a14d10d2c447fce8b6703c";
    let slack = auth(
        &Scheme::Slack {
            tolerance: FIVE_MINUTES,
        },
        &["8f742231b10e8888abcd99yyyzzz85a5"],
    );
    let headers = [
        ("X-Slack-Request-Timestamp", "1531420618"),
        (
            "X-Slack-Signature",
            "v0=a2114d57b48eac39b9ad189dd8316235a7b4a8d21a10bd27519666489c69b503",
        ),
    ];
    let signed = request(body, &headers);
    assert_eq!(slack.verify(&signed, 1_531_420_618_000), Ok(()));
    assert_eq!(
        slack.verify(&request("token=other", &headers), 1_531_420_618_000),
        wrong()
    );
    let mut later = headers;
    later[0].1 = "1531420619";
    assert_eq!(
        slack.verify(&request(body, &later), 1_531_420_618_000),
        wrong(),
        "the time is signed as well"
    );
}

/// The vector of the reference libraries of the Standard Webhooks specification: the test "sign
/// function works" of each of them.
#[test]
fn the_vector_of_standard_webhooks_is_believed() {
    let standard = auth(
        &Scheme::StandardWebhooks {
            tolerance: FIVE_MINUTES,
        },
        &["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"],
    );
    let now = 1_614_265_330_000;
    let signed = |signatures: &str| {
        let headers = [
            ("webhook-id", "msg_p5jXN8AQM9LWM0D4loKWxJek"),
            ("webhook-timestamp", "1614265330"),
            ("webhook-signature", signatures),
        ];
        standard.verify(&request(r#"{"test": 2432232314}"#, &headers), now)
    };
    let right = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
    assert_eq!(signed(right), Ok(()));
    // Several signatures, of several secrets and of a version that is not known.
    let other = "v1,K5oZfzN95Z9UVu1EsfQmfVNQhnkZ2pj9o9NDN/H/pI4=";
    assert_eq!(signed(&format!("v1a,AAAA {other} {right}")), Ok(()));
    assert_eq!(signed(other), wrong());
    assert_eq!(signed(&right.replace("v1,", "v2,")), wrong());
    let unnamed = request("{}", &[("webhook-signature", right)]);
    assert!(matches!(
        standard.verify(&unnamed, now),
        Err(Refusal::Missing { .. })
    ));
}

/// The vector of Stripe's own library for .NET: `event_test_signature.json` in its tests.
#[test]
fn the_vector_of_stripe_is_believed() {
    let body = "{\n  \"id\": \"evt_123\",\n  \"object\": \"event\",\n  \"account\": \"acct_123\",\n  \"api_version\": \"2017-05-25\",\n  \"created\": 1533204620,\n  \"data\": {\n    \"object\": {\n      \"id\": \"ii_123\",\n      \"object\": \"invoiceitem\",\n      \"amount\": 1000,\n      \"currency\": \"usd\",\n      \"customer\": \"cus_123\",\n      \"date\": 1533204620,\n      \"description\": \"Test Invoice Item\",\n      \"discountable\": false,\n      \"invoice\": \"in_123\",\n      \"livemode\": false,\n      \"metadata\": {},\n      \"period\": {\n        \"start\": 1533204620,\n        \"end\": 1533204620\n      },\n      \"plan\": null,\n      \"proration\": false,\n      \"quantity\": null,\n      \"subscription\": null\n    }\n  },\n  \"livemode\": false,\n  \"pending_webhooks\": 1,\n  \"request\": {\n    \"id\": \"req_123\",\n    \"idempotency_key\": \"idempotency-key-123\"\n  },\n  \"type\": \"invoiceitem.created\"\n}\n";
    let right = "v1=f0bdba6d4eacbd8ad8a3bbadd7248e633ec1477f7899c124c51b39405fa36613";
    let stripe = auth(
        &Scheme::Stripe {
            tolerance: FIVE_MINUTES,
        },
        &["the next one", "webhook_secret"],
    );
    let now = 1_533_204_620_000;
    let signed = |header: &str| {
        let request = request(body, &[("Stripe-Signature", header)]);
        stripe.verify(&request, now)
    };
    let test_mode = "v0=63f3a72374a733066c4be69ed7f8e5ac85c22c9f0a6a612ab9a025a9e4ee7eef";
    assert_eq!(signed(&format!("t=1533204620,{right},{test_mode}")), Ok(()));
    let other = format!("v1={}", "0".repeat(64));
    assert_eq!(signed(&format!("t=1533204620,{other},{right}")), Ok(()));
    assert_eq!(signed(&format!("t=1533204620,{other}")), wrong());
    assert_eq!(
        signed(&format!("t=1533204620,{test_mode}")),
        wrong(),
        "a signature of the mode for tests is none"
    );
    assert_eq!(signed(&format!("t=1533204621,{right}")), wrong());
    for unreadable in [right, "t=soon,v1=00", ""] {
        assert!(matches!(
            signed(unreadable),
            Err(Refusal::Unreadable { .. })
        ));
    }
}

/// A vector of the tests of SQLPage, which verifies Shopify's webhooks:
/// `tests/sql_test_files/it_works_hmac_shopify_webhook.sql`.
#[test]
fn a_published_vector_for_shopify_is_believed() {
    let body = r#"{"id":1234567890,"email":"customer@example.com","total_price":"123.45"}"#;
    let header = (
        "X-Shopify-Hmac-SHA256",
        "QNyObTlKbMx2qDlPF/ZOZcBqg5OgPg+2oky3zldc0Gw=",
    );
    let shopify = auth(&Scheme::Shopify, &["test-webhook-secret"]);
    assert_eq!(shopify.verify(&request(body, &[header]), 0), Ok(()));
    assert_eq!(shopify.verify(&request("{}", &[header]), 0), wrong());
}

/// Test case 2 of RFC 4231 (SHA-256, SHA-512) and of RFC 2202 (SHA-1).
#[test]
fn any_hmac_is_believed_in_the_form_that_the_flow_says() {
    let data = "what do ya want for nothing?";
    let form = |algorithm, encoding, prefix: &str| {
        Scheme::Hmac(Hmac {
            header: "x-signature".to_owned(),
            algorithm,
            encoding,
            prefix: prefix.to_owned(),
        })
    };
    let sha1 = "effcdf6ae5eb2fa2d27416d5f184df9c259a7c79";
    let sha256 = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";
    let sha512 = "164b7a7bfcf819e2e395fbe73b56e0a387bd64222e831fd610270cd7ea2505549758bf75c05a994a6d034f65f8f0e6fdcaeab1a34d4a6b4b636e070a38bce737";
    let base64 = STANDARD.encode(hex::decode(sha256).unwrap());
    for (scheme, value) in [
        (form(Algorithm::Sha1, Encoding::Hex, ""), sha1.to_owned()),
        (
            form(Algorithm::Sha256, Encoding::Hex, "v1="),
            format!("v1={}", sha256.to_uppercase()),
        ),
        (form(Algorithm::Sha256, Encoding::Base64, ""), base64),
        (
            form(Algorithm::Sha512, Encoding::Hex, ""),
            sha512.to_owned(),
        ),
    ] {
        let auth = auth(&scheme, &["Jefe"]);
        let right = request(data, &[("X-Signature", &value)]);
        assert_eq!(auth.verify(&right, 0), Ok(()), "{scheme:?}");
        let short = request(data, &[("X-Signature", &value[..value.len() - 4])]);
        assert!(auth.verify(&short, 0).is_err(), "{scheme:?}");
    }
}

#[test]
fn a_request_of_another_time_is_refused() {
    let (key, at) = ("k", 1_700_000_000_u64);
    let sign = |text: String| {
        let key = hmac::Key::new(hmac::HMAC_SHA256, key.as_bytes());
        hmac::sign(&key, text.as_bytes()).as_ref().to_vec()
    };
    let tolerance = Duration::from_secs(60);
    let slack = hex::encode(sign(format!("v0:{at}:b")));
    let stripe = hex::encode(sign(format!("{at}.b")));
    let standard_secret = STANDARD.encode(key);
    let standard = STANDARD.encode(sign(format!("m.{at}.b")));
    let time = at.to_string();
    for (scheme, secret, headers) in [
        (
            Scheme::Slack { tolerance },
            key,
            vec![
                ("x-slack-request-timestamp", time.clone()),
                ("x-slack-signature", format!("v0={slack}")),
            ],
        ),
        (
            Scheme::Stripe { tolerance },
            key,
            vec![("stripe-signature", format!("t={at},v1={stripe}"))],
        ),
        (
            Scheme::StandardWebhooks { tolerance },
            &*standard_secret,
            vec![
                ("webhook-id", "m".to_owned()),
                ("webhook-timestamp", time.clone()),
                ("webhook-signature", format!("v1,{standard}")),
            ],
        ),
    ] {
        let headers: Vec<(&str, &str)> = headers.iter().map(|(name, it)| (*name, &**it)).collect();
        let (auth, request) = (auth(&scheme, &[secret]), request("b", &headers));
        for (now, expect) in [
            (at, Ok(())),
            (at + 60, Ok(())),
            (at - 60, Ok(())),
            (at + 61, Err(Refusal::WrongTime { tolerance })),
            (at - 61, Err(Refusal::WrongTime { tolerance })),
        ] {
            assert_eq!(
                auth.verify(&request, now * 1_000),
                expect,
                "{scheme:?} {now}"
            );
        }
    }
}

#[test]
fn passwords_and_keys_are_compared_whole() {
    let user = Scheme::Basic {
        user: "shop".to_owned(),
    };
    let basic = auth(&user, &["old", "pass:word"]);
    let with = |value: String| request("", &[("Authorization", &value)]);
    for (pair, is_right) in [
        ("shop:pass:word", true),
        ("shop:old", true),
        ("shop:", false),
        ("shop:pass", false),
        ("other:old", false),
    ] {
        let value = format!("basic {}", STANDARD.encode(pair));
        assert_eq!(basic.verify(&with(value), 0).is_ok(), is_right, "{pair}");
    }
    assert!(basic.verify(&with("Bearer old".to_owned()), 0).is_err());

    let header = Scheme::ApiKey {
        place: KeyPlace::Header("authorization".to_owned()),
        prefix: "Bearer ".to_owned(),
    };
    let header = auth(&header, &["k1", "k2"]);
    assert_eq!(header.verify(&with("Bearer k2".to_owned()), 0), Ok(()));
    for value in ["k2", "Bearer k", "Bearer k22", "Bearer "] {
        assert!(
            header.verify(&with(value.to_owned()), 0).is_err(),
            "{value}"
        );
    }
    let query = Scheme::ApiKey {
        place: KeyPlace::Query("key".to_owned()),
        prefix: String::new(),
    };
    let query = auth(&query, &["a b"]);
    let with = |query: &str| Request {
        query: query.to_owned(),
        ..Request::default()
    };
    assert_eq!(query.verify(&with("x=1&key=a+b"), 0), Ok(()));
    assert!(query.verify(&with("x=1"), 0).is_err());
}

#[test]
fn a_secret_that_cannot_be_used_is_said_without_it() {
    let standard = Scheme::StandardWebhooks {
        tolerance: FIVE_MINUTES,
    };
    let why = Auth::new(&standard, "", &["whsec_s3cr3t!".to_owned()]).unwrap_err();
    assert!(why.contains("base64") && !why.contains("s3cr3t"), "{why}");
    assert!(Auth::new(&Scheme::GitHub, "", &[String::new()]).is_err());
    let github = auth(&Scheme::GitHub, &["s3cr3t"]);
    assert!(!format!("{github:?}").contains("s3cr3t"));
}
