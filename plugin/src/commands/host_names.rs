//! Host name lookups of a statically linked program.

/// Restricts host name lookups to /etc/hosts and DNS. For every other source in /etc/nsswitch.conf,
/// glibc would load a module from the node into this static program. The module would load the
/// node's C library, which differs from the program's built-in C library.
pub(super) fn look_names_up_alone() {
    use std::ffi::{c_char, c_int};

    #[allow(unsafe_code)]
    // SAFETY: the declaration matches glibc's nss.h.
    unsafe extern "C" {
        fn __nss_configure_lookup(database: *const c_char, services: *const c_char) -> c_int;
    }
    // SAFETY: both strings end with a zero byte, and glibc only reads the strings. No other thread
    // runs yet.
    #[allow(unsafe_code)]
    let status = unsafe { __nss_configure_lookup(c"hosts".as_ptr(), c"files dns".as_ptr()) };
    debug_assert_eq!(status, 0, "glibc has a database 'hosts' with these services");
}
