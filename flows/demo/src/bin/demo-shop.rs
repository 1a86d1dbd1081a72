//! The demonstration's shop: where orders come from.

use anyhow::Result;
use towpath_demo::{server, shop};

fn main() -> Result<()> {
    let orders = server::setting("DEMO_ORDERS", 1000)?;
    server::run("the shop", shop::router(orders, server::mischief()?)?)
}
