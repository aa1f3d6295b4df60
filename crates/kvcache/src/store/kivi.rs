use tensorpress_tensor::stage::{Auto, Keys, Knobs, Row};
use tensorpress_tensor::{DType, Result};

use super::{Axis, Int, StoreForm};
use crate::stage::{KvPart, KvRole};

/// KIVI (Liu et al., 2024): integers, keys by channel, values by token, the newest tokens exact.
#[derive(Debug, Clone, Copy)]
struct Kivi {
    int: Int,
    residual: Auto<usize>,
}

impl Default for Kivi {
    fn default() -> Self {
        Self { int: Int::new(4), residual: Auto::Auto }
    }
}

impl Knobs for Kivi {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        let int = &mut self.int;
        keys.one_of("bits", &mut int.bits, &[2, 4, 8], "bits of a code")?;
        let about =
            "tokens (keys by channel) and channels (values) that share a scale, a multiple of 16";
        keys.int("group", &mut int.group, 0..=1 << 20, about)?;
        let about = "newest tokens that are exact; else the group";
        keys.auto("residual", &mut self.residual, int.group, 0..=1 << 20, about)?;
        int.window = self.residual.or(int.group);
        let about = "never fewer exact tokens than that, where they else are packed whole";
        keys.flag("sliding", &mut int.sliding, about)?;
        let axes = [("channel", Axis::Channel), ("token", Axis::Token)];
        keys.choice("keys", &mut int.keys, &axes, "what shares a scale of the keys")?;
        let types = [("f32", DType::F32), ("f16", DType::F16), ("bf16", DType::BF16)];
        keys.choice("scales", &mut int.scales, &types, "type of scales and minima")?;
        let about = "newest tokens that can be taken back exactly";
        keys.int("margin", &mut int.margin, 0..=1 << 20, about)
    }
}

pub(super) fn stage() -> Row<KvPart> {
    let about = "holds integers, the newest tokens exactly";
    let build = |kivi: Kivi, _| Ok(KvPart::Store(StoreForm::Int(kivi.int)));
    Row::new("kivi", KvRole::Store, about, Kivi::default, build)
}
