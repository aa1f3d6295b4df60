//! What neighbouring layers have in common: forms that hold several layers together, and layers that read another's.

mod aqua;
mod aqua_kv;
mod kvsharer;
mod minicache;
mod sheet;
#[cfg(test)]
mod tests;
mod xkv;

/// How tokens become pages, of every form of this module.
macro_rules! paged {
    ($form:ty) => {
        impl $form {
            /// Sets the tokens of a page.
            #[must_use]
            pub fn with_chunk(mut self, tokens: usize) -> Self {
                self.chunk = tokens;
                self
            }

            /// Sets how many of the newest tokens are exact.
            #[must_use]
            pub fn with_window(mut self, tokens: usize) -> Self {
                self.window = tokens;
                self
            }

            /// Sets how many of the newest tokens can be taken back exactly.
            #[must_use]
            pub fn with_margin(mut self, tokens: usize) -> Self {
                self.margin = tokens;
                self
            }
        }
    };
}
use paged;

pub use aqua_kv::AquaKv;
pub use kvsharer::{dissimilar_pairs, share_layers};
pub use minicache::{MiniCache, Unmerged};
pub use xkv::XKv;

use std::sync::Arc;

use tensorpress_tensor::Error;
use tensorpress_tensor::stage::Row;

use crate::registry::KvRegistry;
use crate::stage::KvPart;

/// The stages of this module.
pub(super) fn stages() -> [Row<KvPart>; 3] {
    [minicache::stage(), xkv::stage(), aqua_kv::stage()]
}

/// A registry that reads the forms of this module.
pub(super) fn readers(registry: KvRegistry) -> KvRegistry {
    fn reads<F>(registry: KvRegistry, id: &'static str) -> KvRegistry
    where
        F: super::JointForm + serde::de::DeserializeOwned + 'static,
    {
        registry.with_joint(id, |json| {
            let form = F::deserialize(json);
            Ok(Arc::new(form.map_err(|e| Error::corruption(format!("form {json}: {e}")))?))
        })
    }
    let registry = reads::<MiniCache>(registry, minicache::ID);
    reads::<AquaKv>(reads::<XKv>(registry, xkv::ID), aqua_kv::ID)
}
