"""Images, masks, views and shards: everything before the network."""
