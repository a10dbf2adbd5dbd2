//! The guest's agent, as built with this library.

/// The static executable that is `/init` of every guest.
pub(crate) static AGENT: &[u8] = include_bytes!(env!("KILN_AGENT"));

#[cfg(test)]
mod tests {
    use super::AGENT;

    /// A dynamic program could not start in an initramfs that holds no libraries.
    #[test]
    fn the_agent_is_a_static_elf() {
        assert_eq!(&AGENT[..4], b"\x7fELF");
        let has_interpreter = AGENT.windows(9).any(|window| window == b"/ld-linux");
        assert!(!has_interpreter, "the agent asks for a dynamic linker");
    }
}
