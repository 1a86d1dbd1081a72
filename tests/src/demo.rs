//! The demonstration's shop and CRM, as containers on an instance's network.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;

use crate::eventually;
use crate::http;
use crate::instance::Instance;
use crate::machine::{docker, try_docker};

/// How long the two may take to answer, on a busy machine.
const STARTS_WITHIN: Duration = Duration::from_secs(30);

/// A shop with orders, and a CRM that wants them.
pub struct Demo {
    /// The shop, from the host.
    pub shop: String,
    /// The CRM, from the host.
    pub crm: String,
    containers: Vec<String>,
}

impl Demo {
    /// Starts both on the network of `instance`, as `shop` and `crm`, with these settings.
    pub fn start(instance: &Instance, settings: &[(&str, &str)]) -> Self {
        let settings: BTreeMap<_, _> = settings.iter().copied().collect();
        let mut urls = Vec::new();
        let mut containers = Vec::new();
        for name in ["shop", "crm"] {
            let container = format!("{}-{name}", instance.name);
            let image = format!("towpath/demo-{name}:test");
            let mut arguments: Vec<String> = ["run", "-d", "--name", &container, "--network"]
                .map(str::to_owned)
                .to_vec();
            arguments.extend(
                [
                    &instance.name,
                    "--network-alias",
                    name,
                    "-p",
                    "127.0.0.1::8080",
                ]
                .map(str::to_owned),
            );
            for (key, value) in &settings {
                arguments.extend(["-e".to_owned(), format!("{key}={value}")]);
            }
            arguments.push(image);
            docker(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
            let port = docker(&["port", &container, "8080/tcp"]);
            urls.push(format!(
                "http://{}",
                port.lines().next().expect("a published port")
            ));
            containers.push(container);
        }
        let crm = urls.pop().expect("the CRM");
        let shop = urls.pop().expect("the shop");
        let demo = Self {
            shop,
            crm,
            containers,
        };
        // The engine's proxy takes connections before the program behind it does.
        for url in [&demo.shop, &demo.crm] {
            eventually("the demonstration answers", STARTS_WITHIN, || {
                http::send("GET", url, None, None).map(drop)
            });
        }
        demo
    }

    /// What the CRM counts.
    pub fn crm_stats(&self) -> Result<Value, String> {
        http::get(&format!("{}/stats", self.crm))
    }

    /// Says something to the shop or the CRM.
    #[track_caller]
    pub fn post(&self, url: &str) -> String {
        let answer = http::send("POST", url, None, None).expect("the demonstration answers");
        assert!(
            answer.status < 300,
            "{url}: {} {}",
            answer.status,
            answer.text
        );
        answer.text
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        for container in &self.containers {
            drop(try_docker(&["rm", "-f", "-v", container]));
        }
    }
}
