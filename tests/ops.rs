//! What operators see and do, against a real Redis: the state is made by the partition's own scripts, then looked at
//! through the queries, the ACL user and the binary.

mod support;

#[path = "ops/acl.rs"]
mod acl;
#[path = "ops/audit.rs"]
mod audit;
#[path = "ops/health.rs"]
mod health;
#[path = "ops/letters.rs"]
mod letters;
#[path = "support/merchants.rs"]
mod merchants;
#[path = "ops/operations.rs"]
mod operations;
#[path = "ops/partitions.rs"]
mod partitions;
#[path = "support/herald.rs"]
mod process;
#[path = "ops/queries.rs"]
mod queries;
#[path = "ops/stage.rs"]
mod stage;
#[path = "ops/verbs.rs"]
mod verbs;
#[path = "support/world.rs"]
mod world;
