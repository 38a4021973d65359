//! How much work the kernel's verifier has with the programs: every start of meshd loads them all.
#![expect(clippy::unwrap_used, reason = "test")]

use std::time::Instant;

use aya::{
    EbpfLoader, include_bytes_aligned,
    programs::{Program, ProgramInfo},
};

static BYTECODE: &[u8] = include_bytes_aligned!("../bytecode/meshd.bpf.o");

/// Instructions that the verifier may go through for one program, some microseconds each. Its own limit is a
/// million.
const ONE: u32 = 200_000;
/// And for all together.
const ALL: u32 = 500_000;

/// Loads a program, as the loader does.
fn load(program: &mut Program) -> ProgramInfo {
    match program {
        Program::SchedClassifier(p) => p.load().unwrap(),
        Program::CgroupSockAddr(p) => p.load().unwrap(),
        other => panic!("a program of type {:?}", other.prog_type()),
    }
    program.info().unwrap()
}

#[test]
fn loading_takes_a_moment_only() {
    let mut ebpf = EbpfLoader::new().load(BYTECODE).unwrap();
    let mut verified = Vec::new();
    let all = Instant::now();
    for (name, program) in ebpf.programs_mut() {
        let start = Instant::now();
        // Linux 5.16 and later know it.
        let instructions = load(program).verified_instruction_count().unwrap();
        println!("{name}: {instructions} instructions, {:?}", start.elapsed());
        verified.push((name.to_owned(), instructions));
    }
    println!("all: {:?}", all.elapsed());
    assert_eq!(verified.len(), 13);
    let long: Vec<_> = verified.iter().filter(|(_, instructions)| *instructions > ONE).collect();
    assert!(long.is_empty(), "more than {ONE} instructions are gone through: {long:?}");
    let sum: u32 = verified.iter().map(|(_, instructions)| instructions).sum();
    assert!(sum <= ALL, "{sum} instructions are gone through: {verified:?}");
}
