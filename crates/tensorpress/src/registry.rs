use tensorpress_tensor::Registry;

/// Readers of every node and plane of this version: what opens any compressed folder.
#[must_use]
pub fn registry() -> Registry {
    let mut registry = Registry::default();
    tensorpress_entropy::register(&mut registry);
    registry
}
