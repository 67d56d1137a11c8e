"""tether: change what a language model knows, edit after edit, and keep it tethered to everything else it knew."""
