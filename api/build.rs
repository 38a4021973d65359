//! Generates the gRPC code from proto/meshd.proto, without a protoc on the machine.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto/meshd.proto");
    #[cfg(feature = "rpc")]
    {
        let fds = protox::compile(["proto/meshd.proto"], ["proto"])?;
        tonic_prost_build::configure().compile_fds(fds)?;
    }
    Ok(())
}
