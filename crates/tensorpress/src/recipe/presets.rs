use tensorpress_tensor::stage::Preset;

/// Names of stages that later versions will have.
pub(crate) const PLANNED: &[&str] = &["smoothquant", "quip", "qtip", "pv_tuning", "lqer"];

/// Recipes with a name.
#[must_use]
pub fn presets() -> [Preset; 3] {
    [
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
    ]
}
