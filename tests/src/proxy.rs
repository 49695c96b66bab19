//! A TCP proxy in front of the emulator that delays, drops and breaks requests.
