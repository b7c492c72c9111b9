//! The demo.
use anyhow::Result;
/// x
pub fn outside() -> Result<()> {
    Ok(())
}
/// x
pub fn inside() -> Result<()> {
    Ok(())
}
