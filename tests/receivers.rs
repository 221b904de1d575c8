//! The receivers of docs/receivers, as merchants copy them: each receives live callbacks of the real program in its own
//! language, and refuses what is not Herald's. `make setup` installs what they need; Go and a JDK are large, so only
//! `make prove` does: without them their tests say that they are skipped.

// A test waits for other processes.
#![allow(clippy::disallowed_methods)]

#[path = "receivers/language.rs"]
mod language;
#[path = "receivers/merchant.rs"]
mod merchant;
#[path = "support/merchants.rs"]
mod merchants;
#[path = "support/herald.rs"]
mod process;
#[path = "receivers/request.rs"]
mod request;
#[path = "receivers/served.rs"]
mod served;
#[path = "support/mod.rs"]
mod support;
#[path = "receivers/vectors.rs"]
mod vectors;
#[path = "support/world.rs"]
mod world;

use herald::facts::endpoint::Scheme;

use crate::{language::Language, merchant::Merchant, world::World};

/// Everything that a receiver promises, under both schemes at once.
async fn keeps_its_promises(language: Option<Language>) {
    let Some(language) = language else { return };
    let world = World::new().await;
    let herald = world.setup().start();
    let merchant = |scheme| Merchant::new(&world, &language, scheme);
    let (standard, dojo) = (merchant(Scheme::Standard), merchant(Scheme::Dojo));
    tokio::join!(standard.lives(), dojo.lives());
    served::refuses_a_secret_that_anybody_knows(&language).await;
    assert!(herald.stop().await.success());
}

macro_rules! receivers {
    ($($name:ident: $language:expr;)*) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            keeps_its_promises($language).await;
        }
    )*};
}

receivers! {
    the_receiver_in_python_keeps_its_promises: language::python("receiver.py");
    the_receiver_with_flask_keeps_its_promises: language::python("receiver_flask.py");
    the_receiver_in_node_keeps_its_promises: language::node("receiver.js");
    the_receiver_with_express_keeps_its_promises: language::node("receiver_express.js");
    the_receiver_in_php_keeps_its_promises: language::php("receiver.php");
    the_receiver_in_ruby_keeps_its_promises: language::ruby("receiver.rb");
    the_receiver_in_rust_keeps_its_promises: language::rust("receiver.rs");
    the_receiver_in_go_keeps_its_promises: language::go("receiver.go");
    the_receiver_in_java_keeps_its_promises: language::java("Receiver.java");
}
