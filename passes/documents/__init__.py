"""What the passes hand out as plain data: plans and certificates, and JSON read with every fault named."""
