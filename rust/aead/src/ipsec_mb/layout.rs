//! What connlib knows of the library's memory: of version 1.3, for x86-64. `tests/header.rs` compares it with the header.

use std::ffi::{c_int, c_void};

/// Versions whose memory is laid out so: from the first to below the second.
pub const VERSIONS: std::ops::Range<u32> = 0x10300..0x10400;

/// Where fields of `IMB_MGR` lie, in bytes.
pub const FEATURES: usize = 8;
pub const USED_ARCH: usize = 56;
pub const GET_NEXT_BURST: usize = 952;
pub const SUBMIT_BURST: usize = 960;
pub const FLUSH_BURST: usize = 976;

/// `IMB_FEATURE_SAFE_DATA`: it wipes registers and its stack of what is secret.
pub const SAFE_DATA: u64 = 1 << 14;
/// `IMB_FEATURE_SELF_TEST`: it tests itself.
pub const SELF_TEST: u64 = 1 << 20;
/// `IMB_FEATURE_SELF_TEST_PASS`: it has passed.
pub const SELF_TEST_PASS: u64 = 1 << 21;

/// `IMB_ARCH_AVX512`.
pub const ARCH_AVX512: u32 = 5;

/// `IMB_CIPHER_CHACHA20_POLY1305`.
pub const CIPHER: u32 = 19;
/// `IMB_AUTH_CHACHA20_POLY1305`.
pub const AUTH: u32 = 29;
/// `IMB_DIR_ENCRYPT` with `IMB_ORDER_CIPHER_HASH`.
pub const ENCRYPT: (u32, u32) = (1, 1);
/// `IMB_DIR_DECRYPT` with `IMB_ORDER_HASH_CIPHER`.
pub const DECRYPT: (u32, u32) = (2, 2);
/// `IMB_STATUS_COMPLETED`.
pub const COMPLETED: u32 = 3;

/// `IMB_JOB`, with the fields for ChaCha20-Poly1305 of its union.
#[repr(C)]
pub struct Job {
    pub enc_keys: *const c_void,
    pub dec_keys: *const c_void,
    pub key_len_in_bytes: u64,
    pub src: *const u8,
    pub dst: *mut u8,
    pub cipher_start_src_offset_in_bytes: u64,
    pub msg_len_to_cipher_in_bytes: u64,
    pub hash_start_src_offset_in_bytes: u64,
    pub msg_len_to_hash_in_bytes: u64,
    pub iv: *const u8,
    pub iv_len_in_bytes: u64,
    pub auth_tag_output: *mut u8,
    pub auth_tag_output_len_in_bytes: u64,
    pub aad: *const c_void,
    pub aad_len_in_bytes: u64,
    pub ctx: *mut c_void,
    pub status: u32,
    pub cipher_mode: u32,
    pub cipher_direction: u32,
    pub hash_alg: u32,
    pub chain_order: u32,
    pub user_data: *mut c_void,
    pub user_data2: *mut c_void,
    pub cipher_func: *mut c_void,
    pub hash_func: *mut c_void,
    pub sgl_state: u32,
    pub cipher_fields: *mut c_void,
}

/// `burst_fn_t`, of `get_next_burst`, `submit_burst` and `flush_burst`.
pub type Burst = unsafe extern "C" fn(*mut c_void, u32, *mut *mut Job) -> u32;
pub type Version = unsafe extern "C" fn() -> u32;
pub type Alloc = unsafe extern "C" fn(u64) -> *mut c_void;
pub type Init = unsafe extern "C" fn(*mut c_void, *mut c_int);
pub type Free = unsafe extern "C" fn(*mut c_void);
