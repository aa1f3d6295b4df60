use tensorpress_tensor::Result;

use super::keys::Keys;

/// More patches than that are no image.
const MAX_SIDE: usize = 1 << 14;

/// The images that a model reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct Images {
    /// Pixels of a side; images are squares.
    pub size: usize,
    /// Pixels of a side of the patches they are cut into; what is left over at the ends is not seen.
    pub patch: usize,
    /// Values of a pixel.
    pub channels: usize,
}

impl Images {
    pub(super) fn read(keys: &Keys<'_>) -> Result<Self> {
        let size = side(keys, "image_size", MAX_SIDE)?;
        let patch = side(keys, "patch_size", size)?;
        Ok(Self { size, patch, channels: keys.size("num_channels", MAX_SIDE)? })
    }

    /// Patches of an image.
    #[must_use]
    pub fn patches(&self) -> usize {
        (self.size / self.patch).pow(2)
    }

    /// `[channels, height, width]`.
    #[must_use]
    pub fn shape(&self) -> [usize; 3] {
        [self.channels, self.size, self.size]
    }
}

/// The side of a square, which may be said twice.
fn side(keys: &Keys<'_>, key: &str, most: usize) -> Result<usize> {
    if !keys.present(key).is_some_and(serde_json::Value::is_array) {
        return keys.size(key, most);
    }
    let sides: Vec<usize> = keys.require(key)?;
    match sides.as_slice() {
        [height, width] if height == width => keys.check_size(key, *height, most),
        _ => Err(keys.unsupported(format!("`{key}` = {sides:?}: images that are no squares"))),
    }
}
