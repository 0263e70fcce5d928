//! A server for whoever scrapes.

use std::ffi::{CString, c_char};

use metricbus::Scope;

use crate::{
    bus::mb_bus,
    input::{borrowed, place, taken, text, write},
    mb_str,
    status::{Fault, MB_ERROR_POINTER, guard, guard_quietly},
};

/// A running server of `/metrics`, `/rules`, `/health` and `/live`.
pub struct mb_server {
    address: CString,
    #[cfg(feature = "http")]
    server: metricbus::export::BackgroundServer,
}

/// Serves the metrics of a bus over HTTP, from a thread of its own. The address is `host:port`, with port 0 for any that is
/// free; the server listens when this returns.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mb_serve(
    bus: *const mb_bus,
    address: mb_str,
    server: *mut *mut mb_server,
) -> i32 {
    guard(|| {
        // SAFETY: the caller's promise, here and below.
        let place = unsafe { place(server, "the place for the server") }?;
        // SAFETY: as above.
        let bus = unsafe { mb_bus::borrowed(bus) }?;
        // SAFETY: as above.
        let address = unsafe { text(address, "the address") }?;
        place.put(start(bus, address)?);
        Ok(())
    })
}

#[cfg(feature = "http")]
fn start(bus: &Scope, address: &str) -> Result<mb_server, Fault> {
    let server = metricbus::export::Exporter::new(bus.bus())
        .serve_in_background(address)
        .map_err(|error| Fault::new(crate::MB_ERROR_SERVE, error.to_string()))?;
    Ok(mb_server {
        // No address has a NUL in it.
        address: CString::new(server.local_addr().to_string()).unwrap_or_default(),
        server,
    })
}

#[cfg(not(feature = "http"))]
fn start(_: &Scope, _: &str) -> Result<mb_server, Fault> {
    Err(Fault::new(
        crate::MB_ERROR_UNSUPPORTED,
        "this library was built without a server; build metricbus-capi with its feature `http`",
    ))
}

/// Where it listens, as `host:port`, with the port it was given. Valid as long as the server.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mb_server_address(
    server: *const mb_server,
    address: *mut *const c_char,
) -> i32 {
    guard(|| {
        if address.is_null() {
            return Err(Fault::new(
                MB_ERROR_POINTER,
                "the place for the address is NULL",
            ));
        }
        // SAFETY: the caller's promise, here and below.
        let server = unsafe { borrowed(server, "the server") }?;
        // SAFETY: as above.
        unsafe {
            write(
                address,
                "the place for the address",
                server.address.as_ptr(),
            )
        }
    })
}

/// Stops it: answers that are on their way are let finish, for at most 10 s, and then the address is free. NULL is none.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mb_server_free(server: *mut mb_server) {
    guard_quietly(|| {
        // SAFETY: the caller's promise.
        let server = unsafe { taken(server) };
        #[cfg(feature = "http")]
        if let Some(server) = server {
            server.server.shutdown();
        }
        #[cfg(not(feature = "http"))]
        drop(server);
    });
}
