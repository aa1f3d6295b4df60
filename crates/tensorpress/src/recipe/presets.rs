/// A recipe with a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Preset {
    /// Name on the command line.
    pub name: &'static str,
    /// The recipe.
    pub line: &'static str,
    /// When to use it.
    pub about: &'static str,
}

/// Recipes with a name.
pub const PRESETS: &[Preset] = &[
    Preset {
        name: "w8",
        line: "rtn(bits=8, group=128)",
        about: "8 bits, no calibration: next to no loss",
    },
    Preset {
        name: "w4",
        line: "gptq(bits=4, group=128, clip=mse)",
        about: "4 bits: the usual choice for serving",
    },
    Preset {
        name: "w3",
        line: "gptq(bits=3, group=64, clip=mse)",
        about: "3 bits: where memory decides",
    },
];

pub(super) fn find(name: &str) -> Option<&'static Preset> {
    PRESETS.iter().find(|preset| preset.name == name)
}
