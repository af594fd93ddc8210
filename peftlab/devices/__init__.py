"""What several devices hold of one model, and where they meet: shares (FSDP2, ZeRO), layers spread out, the update."""
