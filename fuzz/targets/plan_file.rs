//! Any bytes as a plan file: as they are, and with the digests put right, since otherwise every change ends there.
#![no_main]

use hsd_fuzz::{check_file, resealed};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    check_file(data);
    if let Some(data) = resealed(data) {
        check_file(&data);
    }
});
