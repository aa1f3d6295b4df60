//! KV caches: what is kept of keys and values, and how it is held.
//!
//! A cache is a store ([`store`]: float, integer or sparse forms, attention straight over them) and, where tokens shall
//! go, a policy: token score x budget x action. No engine type is in any signature: arrays go in, arrays come out.

mod kernels;
mod rope;
pub mod store;

pub use rope::Rope;
pub use store::{Axis, Bitmap, Causal, Form, HeadSlots, Int, KvShape, KvStore, Layer};
