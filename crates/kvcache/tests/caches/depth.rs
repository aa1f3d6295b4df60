//! The forms of this crate that hold layers together: the laws of caches, for each.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;
use tensorpress_kvcache::store::{AquaKv, MiniCache, Unmerged, XKv};
use tensorpress_kvcache::{Caches, JointForm, KvRecipe, KvRegistry, KvShape, Rope};
use tensorpress_tensor::checkpoint::write_shard;
use tensorpress_tensor::{Checkpoint, ErrorKind, Result, Storage};

use super::{DIM, far, feed, shape};

fn forms() -> Vec<Arc<dyn JointForm>> {
    let mini = MiniCache::default().with_chunk(24).with_window(10);
    let nearest = mini.with_unmerged(Unmerged::Nearest, 0.1).with_first(0).with_bits(4);
    let xkv = XKv::default().with_chunk(40).with_window(9);
    let aqua = AquaKv::default().with_chunk(40).with_window(5);
    vec![
        Arc::new(mini),
        Arc::new(nearest),
        Arc::new(xkv),
        Arc::new(xkv.with_group(5).with_coordinates(1.0, 0.3)),
        Arc::new(aqua),
        Arc::new(aqua.with_together(true).with_group(4).with_bits(3, 3).with_sinks(0)),
    ]
}

fn together(form: &Arc<dyn JointForm>) -> Caches {
    let rope = Rope::new(DIM, 10_000.0).expect("a rotary embedding");
    Caches::joint(form.clone(), &[shape(); 6], Some(&rope)).expect("caches")
}

#[test]
fn streaming_equals_batch_and_forks_are_apart() {
    for form in forms() {
        let (mut batch, mut stream) = (together(&form), together(&form));
        feed(&mut batch, 0..150);
        (0..150).for_each(|t| drop(feed(&mut stream, t..t + 1)));
        let mut fork = stream.fork();
        feed(&mut fork, 300..350);
        let (a, b) = (feed(&mut batch, 150..190), feed(&mut stream, 150..190));
        assert!(far(&a, &b) < 2e-6, "{form:?}: {}", far(&a, &b));
        assert_eq!(batch.describe(), stream.describe());
        assert_eq!(batch.bytes(), stream.bytes());
    }
}

#[test]
fn what_was_taken_back_has_never_been() {
    for form in forms() {
        let mut caches = together(&form);
        feed(&mut caches, 0..130);
        let (earliest, full) = (caches.earliest(), caches.len());
        assert!(earliest < full, "{form:?}: {earliest}");
        for len in [full - 1, full - 4, earliest] {
            let mut back = caches.fork();
            back.truncate(len).expect("truncates");
            let mut again = together(&form);
            feed(&mut again, 0..len);
            let (a, b) = (feed(&mut back, 200..240), feed(&mut again, 200..240));
            assert!(far(&a, &b) < 2e-6, "{form:?}: {len}");
            assert_eq!(back.bytes(), again.bytes());
        }
        caches.truncate(0).expect("all of it");
        assert_eq!((caches.bytes(), caches.is_empty()), (0, true));
    }
}

fn written(caches: &Caches) -> (Vec<u8>, String) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("kv.safetensors");
    let mut parts = Storage::default();
    caches.parts("kv", &mut parts).expect("counts");
    assert_eq!(parts.bytes(), caches.bytes(), "bits written = bits claimed");
    write_shard(&path, &BTreeMap::new(), &mut |sink| caches.parts("kv", sink)).expect("writes");
    (std::fs::read(&path).expect("reads"), caches.describe().to_string())
}

fn read(bytes: Vec<u8>, json: &Value) -> Result<Caches> {
    Caches::read(json, "kv", &Checkpoint::from_bytes("kv", bytes)?, &KvRegistry::default())
}

#[test]
fn caches_come_back_from_a_file_and_damage_is_seen_or_harmless() {
    for form in forms() {
        let mut caches = together(&form);
        feed(&mut caches, 0..120);
        let (bytes, text) = written(&caches);
        let json = serde_json::from_str(&text).expect("JSON");
        let mut back = read(bytes.clone(), &json).expect("reads");
        assert_eq!(back.describe(), caches.describe());
        assert_eq!(back.bytes(), caches.bytes());
        let try_read = |bytes: Vec<u8>, json: &Value| match read(bytes, json) {
            Ok(mut caches)
                if caches.layers() == 6 && (0..6).all(|l| caches.layer(l).shape() == shape()) =>
            {
                if caches.len() == 120 {
                    feed(&mut caches, 120..123);
                }
                0
            }
            Ok(_) => 0,
            Err(_) => 1,
        };
        for at in (0..bytes.len()).step_by(bytes.len() / 40) {
            try_read(bytes[..at].to_vec(), &json);
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << 5;
            try_read(flipped, &json);
        }
        let mut refused = 0;
        for at in (0..text.len()).step_by(7) {
            let mut flipped = text.clone().into_bytes();
            flipped[at] ^= 1 << (at % 7);
            if let Ok(json) = serde_json::from_slice(&flipped) {
                refused += try_read(bytes.clone(), &json);
            }
        }
        assert!(refused > 10, "{form:?}: {refused} damaged descriptions refused");
        let (a, b) = (feed(&mut back, 120..170), feed(&mut caches, 120..170));
        assert!(far(&a, &b) == 0.0, "{form:?}");
    }
}

#[test]
fn recipes_make_them() {
    for (line, pages) in [
        ("minicache(chunk=24, bits=4)", "minicache"),
        ("xkv(group=3, chunk=40, keys=0.5)", "xkv"),
        ("aqua_kv(bits=3, chunk=40, together=true)", "aqua_kv"),
    ] {
        let recipe: KvRecipe = line.parse().expect("a recipe");
        let mut caches = recipe.together(&[shape(); 6]).expect("caches");
        feed(&mut caches, 0..150);
        assert!(caches.describe().to_string().contains(pages));
        let mut floats =
            "f32".parse::<KvRecipe>().expect("a recipe").together(&[shape(); 6]).expect("caches");
        feed(&mut floats, 0..150);
        assert!(caches.bytes() < floats.bytes(), "{line}");
        let error = recipe.caches(6, 4, 2, DIM).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
    }
    let shapes = [KvShape::new(4, 2, DIM).expect("a shape"); 6];
    for form in [
        Arc::new(MiniCache::default().with_t(1.5)) as Arc<dyn JointForm>,
        Arc::new(MiniCache::default().with_bits(9)),
        Arc::new(MiniCache::default().with_chunk(0)),
        Arc::new(XKv::default().with_coordinates(0.0, 1.0)),
        Arc::new(XKv::default().with_chunk(1 << 20)),
        Arc::new(AquaKv::default().with_bits(9, 2)),
        Arc::new(AquaKv::default().with_group(0)),
    ] {
        let error = Caches::joint(form.clone(), &shapes, None).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{form:?}");
    }
}
