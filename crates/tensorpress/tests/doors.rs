//! What a program meets that embeds the library: one matrix in one call, of every type, and bad input at every door.

use tensorpress::prelude::*;
use tensorpress::tensor::half::{bf16, f16};
use tensorpress::tensor::linalg::{Par, SplitMix};
use tensorpress::tensor::ndarray::{Array1, Array2, s};
use tensorpress::tensor::node::{decode, from_bytes, save, to_bytes};
use tensorpress::tensor::stats::Calibration;
use tensorpress::tensor::{Compressed, Tensor};
use tensorpress::{compress, compress_with, open_model_with};

fn random(rows: usize, cols: usize, seed: u64) -> Array2<f32> {
    let mut random = SplitMix::new(seed);
    Array2::from_shape_fn((rows, cols), |_| random.next_f64() as f32 - 0.5)
}

fn calibration(channels: usize) -> Calibration {
    Calibration::from_samples(random(128, channels, 7), Par::Seq)
}

fn kind(made: tensorpress::Result<Compressed>) -> ErrorKind {
    made.expect_err("refused").kind()
}

/// All stages that compress a matrix, alone or before a quantiser.
fn recipes() -> Vec<String> {
    let alone = ["rtn", "gptq", "awq", "nf4", "fp4", "dynamic8", "magnitude", "wanda", "sparsegpt"];
    let fitted = [
        "hqq",
        "kmeans",
        "squeezellm(outliers=0.01)",
        "bitmod",
        "post(group=16, rounding=feedback)",
        "sherry",
        "binary(bases=2, fit=joint)",
        "nf4(rounding=feedback)",
        "dkm",
        "sketch(group=16)",
        "nested",
        "mixllm",
        "pvq(rounding=feedback)",
        "e8",
        "pv(kmeans(bits=2), rounds=1)",
        "bitstack(rank=2)",
        "spqr",
        "obq",
        "obc",
        "aqlm(bits=4, beam=1, rounds=1)",
        "qtip(bits=4)",
    ];
    let coded = [
        "drift | gptq(bits=3)",
        "gptaq",
        "guided | gptq(bits=3)",
        "watersic",
        "watersic(bits=2, states=0) | coded(rans)",
    ];
    let blocks = ["ggml(type=Q4_0)", "ggml(type=Q6_K)"];
    let alone = alone.iter().chain(&fitted).chain(&coded).chain(&blocks);
    let factors = ["svd", "asvd", "svd_llm", "lord", "feature_mimicking"];
    let mut lines: Vec<String> = alone.chain(&factors).map(|s| (*s).to_owned()).collect();
    lines.extend(["hadamard | gptq(bits=3)", "sparsegpt(pattern=2:4, bits=4)"].map(Into::into));
    lines.push("wanda(pattern=2:4) | gptq | residual(eora(rank=2)) | coded(rans)".into());
    lines
}

#[test]
fn one_call_of_every_type() {
    let weight = random(24, 64, 1);
    let seen = calibration(64);
    for recipe in recipes() {
        let exact = compress(&weight, &recipe, &seen).unwrap_or_else(|e| panic!("{recipe}: {e}"));
        assert_eq!(exact.node.shape(), [24, 64], "{recipe}");
        let half = weight.mapv(f16::from_f32);
        let brain = weight.mapv(bf16::from_f32);
        let double = weight.mapv(f64::from);
        let views: [&dyn Tensor; 5] =
            [&half, &brain, &double, &weight.slice(s![..;-1, ..]), &weight.view()];
        for tensor in views {
            let made = compress(tensor, &recipe, &seen).unwrap_or_else(|e| panic!("{recipe}: {e}"));
            assert_eq!(made.node.shape(), [24, 64], "{recipe}");
        }
        let same = compress(&double, &recipe, &seen).unwrap();
        assert_eq!(decode(&*same.node).unwrap(), decode(&*exact.node).unwrap(), "{recipe}");
        let bytes = to_bytes(&*exact.node).unwrap();
        let again = from_bytes(bytes, &registry()).unwrap();
        assert_eq!(decode(&*again).unwrap(), decode(&*exact.node).unwrap(), "{recipe}");
    }
}

#[test]
fn bad_input_is_refused_and_named() {
    let (weight, seen) = (random(8, 32, 2), calibration(32));
    for recipe in recipes() {
        let narrow = calibration(16);
        assert_eq!(kind(compress(&weight, &recipe, &narrow)), ErrorKind::ShapeMismatch, "{recipe}");
        for bad in [f32::NAN, f32::INFINITY] {
            let mut weight = weight.clone();
            weight[[3, 5]] = bad;
            let error = compress(&weight, &recipe, &seen).expect_err("not finite");
            assert_eq!(error.kind(), ErrorKind::Numerical, "{recipe}: {error}");
            assert_eq!(error.tensor(), Some("weight"), "{recipe}: {error}");
        }
        // Nothing to do, or a clear error; never a panic.
        for (rows, cols) in [(0, 32), (8, 0), (0, 0), (1, 1)] {
            let _ = compress(&Array2::<f32>::zeros((rows, cols)), &recipe, &calibration(cols));
        }
        let _ = compress(&Array1::<f32>::zeros(32), &recipe, &seen);
    }
    let unknown = ["gptqq", "", "gptq(bits=99)", "gptq | gptq", "w4 | w4", "rtn(", "coded(rans)"];
    for line in unknown {
        let found = kind(compress(&weight, line, &seen));
        assert_eq!(found, ErrorKind::InvalidArgument, "{line}");
    }
    for line in ["flap", "drop_blocks | rtn", "feature_mimicking | residual(eora)"] {
        assert_eq!(kind(compress(&weight, line, &seen)), ErrorKind::Unsupported, "{line}");
    }
    let blind = Calibration::none(32);
    // What needs statistics says that there were none, or refuses.
    for line in ["gptq", "awq", "wanda", "sparsegpt", "asvd", "svd_llm"] {
        match compress(&weight, line, &blind) {
            Ok(made) => assert!(made.fallback.is_some(), "{line}"),
            Err(e) => assert_eq!(e.kind(), ErrorKind::MissingCalibration, "{line}: {e}"),
        }
    }
    assert!(compress(&weight, "rtn", &blind).unwrap().fallback.is_none());
}

#[test]
fn a_registry_of_ones_own() {
    let registry = registry();
    let made = compress_with(&random(8, 32, 3), "w8", &Calibration::none(32), &registry);
    assert!(made.is_ok());
    let missing = open_model_with("no/such/folder", &registry).expect_err("no model");
    assert!(missing.to_string().contains("no/such/folder"), "{missing}");
}

#[test]
fn saved_whole_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("node.safetensors");
    let made = compress(&random(8, 32, 4), "w8", &Calibration::none(32)).unwrap();
    save(&*made.node, &path).unwrap();
    let before = std::fs::read(&path).unwrap();
    // A folder in the way of nothing: the old file stays, and no other is left behind.
    assert!(save(&*made.node, folder.path().join("no/such/folder/node")).is_err());
    save(&*made.node, &path).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), before);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    for end in 0..before.len() {
        assert!(from_bytes(before[..end].to_vec(), &registry()).is_err(), "{end} bytes");
    }
    for bit in 0..before.len() * 8 {
        let mut flipped = before.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(from_bytes(flipped, &registry()).is_err(), "bit {bit}");
    }
}
